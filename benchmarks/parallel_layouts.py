"""Losses of every parallel layout against a single process, on the same batches of real text.

    python benchmarks/parallel_layouts.py
    python benchmarks/parallel_layouts.py --steps 5     # in four minutes

Each layout trains from the same weights in as many processes as it needs, of one thread each. On a processor
with fewer cores than processes the speeds only say that it runs; the losses are what this is about.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from headway.config.corpus import CorpusConfig
from headway.config.pretrain import PretrainConfig
from headway.config.training import ParallelConfig
from headway.data.corpus.prepare import prepare_corpus, read_splits
from headway.engine.parallel.worker import DIMENSIONS, Worker
from headway.engine.training.hooks import StepInfo
from headway.engine.training.trainer import Trainer
from headway.runs.pretraining import PretrainingJob

LAYOUTS = [
    (1, ParallelConfig()),
    (2, ParallelConfig()),
    (2, ParallelConfig(shard=2)),
    (2, ParallelConfig(tensor=2)),
    (4, ParallelConfig(data=2, shard=2)),
    (4, ParallelConfig(data=2, tensor=2)),
    (4, ParallelConfig(shard=2, tensor=2)),
    (2, ParallelConfig(pipeline=2)),
    (4, ParallelConfig(pipeline=4)),
    (4, ParallelConfig(pipeline=2, data=2)),
    (4, ParallelConfig(pipeline=2, shard=2)),
    (4, ParallelConfig(pipeline=2, tensor=2)),
]
MICRO_BATCHES = 4  # as the longest pipeline needs


@dataclass(frozen=True)
class Measured:
    """What a layout's first worker measured."""

    losses: list[float]
    held: float
    tokens_per_second: float


def train(rank: int, workers: int, layout: ParallelConfig, corpus: Path, settings: dict[str, Any]) -> None:
    """One process's part; the first one writes what it measured beside the corpus."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{settings['meet']}", rank=rank, world_size=workers)
    config = PretrainConfig.model_validate(
        settings["config"] | {"workers": workers, "parallel": layout.model_dump()}
    )
    job = PretrainingJob(config, corpus, None)
    objective = job.objective()
    weights = sum(parameter.numel() for parameter in objective.parameters())
    losses: list[float] = []
    speeds: list[float] = []

    def report(info: StepInfo) -> None:
        if "mlm_loss" in info.metrics:
            losses.append(info.metrics["mlm_loss"] + info.metrics["nsp_loss"])
            speeds.append(info.metrics["tokens_per_second"])

    worker = Worker(rank, workers, torch.device("cpu")).arranged(layout)
    trainer = Trainer(objective, job.batches()[0], config, worker=worker)
    trainer.add_hook(report)
    trainer.run()
    if rank == 0:
        measured = Measured(losses, held(trainer) / weights, sorted(speeds)[len(speeds) // 2])
        Path(settings["result"]).write_text(json.dumps(vars(measured)))
    dist.barrier()
    dist.destroy_process_group()


def held(trainer: Trainer) -> int:
    """How many weights lie on this worker."""
    parameters = trainer.objective.parameters()
    return sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)


def measure(workers: int, layout: ParallelConfig, corpus: Path, config: dict[str, Any]) -> Measured:
    """Train under a layout, in new processes."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"config": config, "meet": f"{folder}/meet", "result": f"{folder}/result"}
        mp.spawn(train, (workers, layout, corpus, settings), nprocs=workers)
        return Measured(**json.loads(Path(folder, "result").read_text()))


def name_of(workers: int, layout: ParallelConfig) -> str:
    """A layout in words."""
    sizes = zip(DIMENSIONS, layout.mesh_shape(workers), strict=True)
    return " x ".join(f"{name} {size}" for name, size in sizes if size > 1) or "a single process"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="bert-mini")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--source", default="bbc-news")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    corpus_config = CorpusConfig.model_validate(
        {"source": options.source, "vocab_size": 2048, "max_length": 64}
    )
    config = {
        "corpus": options.source,
        "model": {"preset": options.preset, "dropout": 0.0},
        "steps": options.steps,
        "batch_size": options.batch_size,
        "gradient_accumulation": MICRO_BATCHES,
        "log_every": 1,
        "precision": "fp32",
    }
    print(f"{options.preset}, {options.steps} steps of {options.batch_size} sequences of {options.source}\n")
    print(f"{'layout':<24}{'processes':>10}{'first loss':>12}{'last loss':>12}", end="")
    print(f"{'most apart':>12}{'weights held':>14}{'tokens/s':>10}")
    apart: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        train_texts, held_out, duplicates = read_splits(corpus_config)
        corpus = prepare_corpus(train_texts, held_out, corpus_config, Path(folder), duplicates).folder
        alone: Measured | None = None
        for workers, layout in LAYOUTS:
            found = measure(workers, layout, corpus, config)
            alone = alone or found
            name = name_of(workers, layout)
            pairs = zip(found.losses, alone.losses, strict=True)
            apart[name] = max(abs(one / other - 1.0) for one, other in pairs)
            print(f"{name:<24}{workers:>10}{found.losses[0]:>12.6f}{found.losses[-1]:>12.6f}", end="")
            print(f"{apart[name]:>12.1e}{found.held:>14.2f}{found.tokens_per_second:>10,.0f}", flush=True)
    print()
    print(json.dumps({"steps": options.steps, "most_apart": apart}))


if __name__ == "__main__":
    main()
