"""How training speeds up with workers, and a cost model of it that is fitted here and asked about GPUs.

    python benchmarks/scaling.py                                  # about five minutes on 2 cores
    python benchmarks/scaling.py --shapes bert-tiny:8 --steps 4   # in half a minute

Each worker is a process pinned to a core, with one thread, and always has the same work; on two cores, four
workers take turns, and say only whether the model holds. "Apart" are as many processes that do not exchange
gradients: what the machine itself costs. docs/scaling.md explains the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lib.cost_model import Encoder, Link, Machine, all_reduce_seconds, step_cost
from lib.local_cluster import write_pipeline
from lib.random_batches import RandomBatches

from headway.config.corpus import CorpusConfig
from headway.config.pretrain import ModelConfig, PretrainConfig
from headway.config.training import TrainingConfig
from headway.data.corpus.prepare import prepare_corpus, read_splits
from headway.data.sampling import BatchSizes, deal, rows_of_step
from headway.engine.model.encoder import bert_config, new_pretraining_model
from headway.engine.parallel.worker import Worker
from headway.engine.training.objectives import PretrainingObjective
from headway.engine.training.trainer import Trainer
from headway.runs.pretraining import PretrainingJob

LENGTH = 128
VOCABULARY = 30_522
Found = dict[str, float]
Loader = tuple[float, float]
"""Tokens/s of one thread; seconds a row of all workers."""
Links = dict[str, Link]
"""By the bytes of a number."""
SIZES = [2**14, 2**18, 2**22, 2**25, 2**27]


def timed_updates(trainer: Trainer) -> list[float]:
    """A list to which each of a trainer's updates of the weights will append how long it took."""
    seconds: list[float] = []
    update = trainer.optimizer_step._update

    def timed(*arguments: Any) -> int | None:
        started = time.perf_counter()
        bad_step = update(*arguments)
        seconds.append(time.perf_counter() - started)
        return bad_step

    trainer.optimizer_step._update = timed  # type: ignore[method-assign, assignment]
    return seconds


def train(
    rank: int, workers: int, together: bool, preset: str, sequences: int, steps: int, meet: str
) -> None:
    """One process's part; the first one writes the median seconds of a step and of its update."""
    take_core(rank, workers, meet)
    worker = Worker(rank, workers, torch.device("cpu")) if together else Worker(device=torch.device("cpu"))
    config = TrainingConfig.model_validate(
        {"steps": steps + 1, "batch_size": sequences * worker.world_size, "log_every": 1}
    )
    shape = bert_config(ModelConfig.model_validate({"preset": preset}), VOCABULARY, LENGTH, 0)
    objective = PretrainingObjective(new_pretraining_model(shape, True, 0), "nsp")
    weights = sum(parameter.numel() for parameter in objective.parameters())
    moments: list[float] = []
    flops: list[float] = []
    batches = RandomBatches(VOCABULARY, sequences, LENGTH)
    trainer = Trainer(objective, batches, config, worker=worker)
    trainer.add_hook(lambda info: moments.append(time.perf_counter()))
    updates = timed_updates(trainer)
    for step in range(2, steps + 1):
        flops.append(sum(trainer.flops.of_batch(b) for b in batches.micro_batches(step, rank, workers, 1)))
    dist.barrier()
    trainer.run()
    dist.barrier()
    if rank == 0:
        spans = [later - earlier for earlier, later in pairwise(moments)]
        found = {
            "step": statistics.median(spans),
            "update": statistics.median(updates[1:]),
            "flops": statistics.mean(flops),
            "weights": weights,
            "gradient_bytes": 4,
            "tokens": statistics.mean(
                int(b.lengths.sum()) for s in range(2, steps + 1) for b in batches.micro_batches(s, 0, 1, 1)
            ),
        }
        Path(f"{meet}.result").write_text(json.dumps(found))
    dist.destroy_process_group()


def exchange(rank: int, workers: int, dtype_name: str, meet: str) -> None:
    """Sum arrays of several sizes over all workers; the first one writes the median seconds of each."""
    take_core(rank, workers, meet)
    dtype = getattr(torch, dtype_name)
    found = {}
    for size in SIZES:
        values = torch.ones(size // dtype.itemsize, dtype=dtype)
        spans = []
        for _ in range(8 if size < 2**26 else 4):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(values)
            spans.append(time.perf_counter() - started)
        found[size] = statistics.median(spans[1:])
    if rank == 0:
        Path(f"{meet}.result").write_text(json.dumps(found))
    dist.destroy_process_group()


def take_core(rank: int, workers: int, meet: str) -> None:
    """Pin this process to a core, and join the group."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=workers)


def spawned(function: Any, workers: int, *arguments: Any) -> dict[str, float]:
    """What the first of so many processes wrote."""
    with tempfile.TemporaryDirectory() as folder:
        meet = f"{folder}/meet"
        mp.spawn(function, (workers, *arguments, meet), nprocs=workers)
        return json.loads(Path(f"{meet}.result").read_text())


def loader_speed() -> tuple[float, float]:
    """Tokens/s that one thread makes of made-up text, and seconds a row to deal out a batch of 65,536."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = json.loads(write_pipeline(Path(folder), {}).read_text())["steps"]["pretrain"]
        corpus_config = CorpusConfig.model_validate(pipeline["corpus"] | {"max_length": LENGTH})
        train_texts, held_out, duplicates = read_splits(corpus_config)
        corpus = prepare_corpus(train_texts, held_out, corpus_config, Path(folder) / "corpus", duplicates)
        config = PretrainConfig.model_validate(
            {"corpus": corpus_config, "model": {"preset": "bert-tiny"}, "batch_size": 64, "steps": 1}
        )
        batches = PretrainingJob(config, corpus.folder, None).batches()[0]
        started = time.perf_counter()
        made = [batch for step in range(50) for batch in batches.micro_batches(step, 0, 1, 1)]
        rate = sum(len(batch.input_ids) for batch in made) / (time.perf_counter() - started)
    rows, lengths = 65_536, torch.randint(64, 129, (1_000_000,)).numpy()
    spans = []
    for step in range(4):
        started = time.perf_counter()
        drawn = rows_of_step(0, step, BatchSizes(rows), len(lengths))[1]
        deal(lengths[drawn], rows // 64)
        spans.append(time.perf_counter() - started)
    return rate, statistics.median(spans[1:]) / rows


def fitted(alone: Found, apart: Found, shape: Encoder, sequences: int, link: Link, loader: Loader) -> Machine:
    """This machine, by what one worker did, two apart, and two that exchanged arrays."""
    compute = alone["step"] - alone["update"]
    cores = len(os.sched_getaffinity(0))
    return Machine(
        rate=shape.flops(sequences, round(alone["tokens"] / sequences)) / compute,
        update_seconds=alone["update"] / alone["weights"],
        inside=link,
        between=link,
        workers=1024,
        units=cores,
        overlaps=False,  # what carries the gradients is the core that computes
        gradient_bytes=int(alone["gradient_bytes"]),
        loader_rate=loader[0],
        dealing_seconds=loader[1],
        copy_rate=float("inf"),
        storage_rate=float("inf"),
        crowding=max(1.0, apart["step"] / alone["step"]),
    )


# One H200, measured: a bf16 product runs at 756 TFLOP/s, BERT-large's step reaches 0.607 of that, and memory
# moves 4.3 TB/s. NVIDIA's data sheets: NVLink 900 GB/s both ways together, PCIe 5 64 GB/s each way;
# ConnectX-7, 400 Gb/s for each GPU. How much of the links is reached is assumed.
PRODUCT_RATE, UTILISATION, MEMORY_RATE, REACHED = 756e12, 0.607, 4.3e12, 0.75
LOADER_PROCESSES = 4
BYTES_OF_UPDATE = 36  # weights and two moments read and written, gradients in both precisions, the copy


def gpus(loader: Loader) -> Machine:
    """Machines of eight H200 each, on InfiniBand, with four of this machine's loaders a worker."""
    return Machine(
        rate=PRODUCT_RATE * UTILISATION,
        update_seconds=BYTES_OF_UPDATE / MEMORY_RATE,
        inside=Link(450e9 * REACHED, 3e-6),
        between=Link(50e9 * REACHED, 10e-6),
        workers=8,
        units=8,
        overlaps=True,
        gradient_bytes=4,
        loader_rate=LOADER_PROCESSES * loader[0],
        dealing_seconds=loader[1],
        copy_rate=64e9 * REACHED,
        storage_rate=10e9,
    )


def report_group(
    preset: str, sequences: int, options: argparse.Namespace, links: Links, loader: Loader
) -> Any:
    """Measure a shape at every number of workers, and print it beside what the model says."""
    found = {n: spawned(train, n, True, preset, sequences, options.steps) for n in options.workers}
    apart = spawned(train, 2, False, preset, sequences, options.steps)
    alone = found[1]
    config = bert_config(ModelConfig.model_validate({"preset": preset}), VOCABULARY, LENGTH, 0)
    shape = Encoder.bert(config.num_hidden_layers, config.hidden_size, VOCABULARY)
    link = links[str(int(alone["gradient_bytes"]))]
    machine = fitted(alone, apart, shape, sequences, link, loader)
    length = round(alone["tokens"] / sequences)
    millions = alone["weights"] / 1e6
    print(f"\n{preset}, {sequences} sequences of {length} tokens a worker, {millions:.1f} M weights")
    print(f"{'workers':<12}{'s a step':>10}{'tokens/s':>10}{'efficiency':>12}{'model: s':>10}{'off':>8}")
    rows = {}
    for n, one in found.items():
        says = step_cost(shape, machine, n, sequences, length).seconds
        # With more workers than cores each can have its turn only: what counts is the cores' work.
        reached = alone["step"] / one["step"] * max(1, n / machine.units)
        rows[n] = {"efficiency": round(reached, 3), "model_off": round(says / one["step"] - 1, 3)}
        print(f"{n:<12}{one['step']:>10.3f}{n * one['tokens'] / one['step']:>10,.0f}{reached:>12.3f}", end="")
        print(f"{says:>10.3f}{says / one['step'] - 1:>8.1%}")
    print(f"{'2 apart':<12}{apart['step']:>10.3f}{'':>10}{alone['step'] / apart['step']:>12.3f}")
    size = alone["weights"] * alone["gradient_bytes"]
    together, says = found[2]["step"] - apart["step"], all_reduce_seconds(machine, size, 2)
    print(f"update {alone['update']:.3f} s; exchange of two {together:.3f} s, by the model {says:.3f} s")
    return rows


def report_gpus(loader: Loader) -> dict[str, Any]:
    """Print what the model says of BERT-large on GPUs."""
    machine, large = gpus(loader), Encoder.bert(24, 1024, VOCABULARY)
    said: dict[str, Any] = {}
    for title, share in (
        ("64 sequences a GPU", lambda n: 64),
        ("4,096 sequences on all GPUs", lambda n: 4096 // n),
    ):
        print(f"\nBERT-large, {large.weights / 1e6:.0f} M weights, sequences of {LENGTH} tokens, {title}")
        print(f"{'GPUs':<8}{'ms a step':>10}{'compute':>9}{'exchange':>10}", end="")
        print(f"{'update':>8}{'states':>8}{'loader':>8}", end="")
        print(f"{'M tokens/s':>12}{'efficiency':>12}  bottleneck")
        for n in (8, 64, 1024):
            sequences = share(n)
            one = step_cost(large, machine, n, sequences, LENGTH, states_every=500)
            arithmetic = large.flops(sequences, LENGTH) / machine.rate / one.seconds
            parts = [one.seconds, one.compute, one.exchange, one.update, one.copying, one.loader]
            print(f"{n:<8}{parts[0] * 1e3:>10.2f}{parts[1] * 1e3:>9.2f}{parts[2] * 1e3:>10.2f}", end="")
            print(f"{parts[3] * 1e3:>8.2f}{parts[4] * 1e3:>8.2f}{parts[5] * 1e3:>8.2f}", end="")
            print(f"{n * sequences * LENGTH / one.seconds / 1e6:>12.1f}{arithmetic:>12.2f}  {one.bottleneck}")
            said[f"{title}, {n}"] = one.bottleneck
    return said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["bert-mini:64", "bert-base:16"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    loader = loader_speed()
    print(f"loader: {loader[0]:,.0f} tokens/s a thread, {loader[1] * 1e6:.2f} us a row to deal a batch out")
    links: Links = {}
    for name in ("float32", "bfloat16"):
        spans = {int(size): seconds for size, seconds in spawned(exchange, 2, name).items()}
        link = Link(SIZES[-1] / spans[SIZES[-1]], spans[SIZES[0]] / 2)
        links[str(getattr(torch, name).itemsize)] = link
        print(
            f"all-reduce of two, {name}: {link.bandwidth / 1e9:.2f} GB/s, {link.latency * 1e6:.0f} us a hop"
        )
    rows = {}
    for shape in options.shapes:
        preset, sequences = shape.split(":")
        rows[preset] = report_group(preset, int(sequences), options, links, loader)
    said = report_gpus(loader)
    print()
    print(json.dumps({"shapes": rows, "bottlenecks": said}))


if __name__ == "__main__":
    main()
