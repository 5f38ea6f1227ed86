"""What a state every 20 steps costs: the same training, with and without, in turn.

    python benchmarks/checkpoint_cost.py
    python benchmarks/checkpoint_cost.py --preset bert-tiny --steps 39 --rounds 2     # in half a minute

Two processes of one core each train the same batches in one session. Rounds with a state every so many
steps alternate with rounds without, and are timed up to their last step. The cost of a state is the
difference of the medians, by the number of states; set against the seconds of the steps between two.
With `--blocking` the same state is also written while training waits, for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lib.random_batches import RandomBatches
from transformers import BertConfig

from headway.config.pretrain import ModelConfig
from headway.config.training import TrainingConfig
from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.storage import Folder
from headway.engine.model.encoder import bert_config, new_pretraining_model
from headway.engine.parallel.worker import Worker
from headway.engine.training.objectives import PretrainingObjective
from headway.engine.training.trainer import Trainer


class Blocking(Checkpoints):
    """Training waits for each state."""

    def save(self, *arguments: Any, **named: Any) -> None:
        """See `Checkpoints`."""
        super().save(*arguments, **named)
        self.wait()


def measure(rank: int, options: argparse.Namespace, folder: str) -> None:
    """One process's part; the first one prints."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options.port)}
    dist.init_process_group("gloo", rank=rank, world_size=options.workers)
    worker = Worker(rank, options.workers, torch.device("cpu"))
    states: dict[str, Checkpoints | None] = {
        "without": None,
        "asynchronous": Checkpoints(Folder(Path(folder) / "asynchronous"), worker),
    }
    if options.blocking:
        states["blocking"] = Blocking(Folder(Path(folder) / "blocking"), worker)
    modes = list(states)
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    shape = bert_config(ModelConfig(preset=options.preset), options.vocab_size, 128, 0)
    for number in range(options.rounds + 1):
        for mode in modes if number % 2 == 0 else modes[::-1]:
            seconds[mode].append(seconds_of_round(shape, options, worker, states[mode]))
        if number == 0:  # the first one also loads and allocates
            seconds = {mode: [] for mode in modes}
    if rank == 0:
        report(seconds, options, state_bytes(Path(folder) / "asynchronous"))
    dist.destroy_process_group()


def seconds_of_round(
    shape: BertConfig, options: argparse.Namespace, worker: Worker, states: Checkpoints | None
) -> float:
    """Train `steps` steps from scratch, and return how long they took, without the state at the very end."""
    if states is not None and worker.rank == 0:
        for name in states.folder.names():
            states.folder.remove(name)
    dist.barrier()
    settings = {"steps": options.steps, "batch_size": options.batch_size, "log_every": options.steps}
    config = TrainingConfig.model_validate(settings | {"checkpoint_every": options.every})
    objective = PretrainingObjective(new_pretraining_model(shape, True, 0), "nsp")
    batches = RandomBatches(options.vocab_size, options.batch_size // worker.world_size, 128)
    moments: list[float] = []
    trainer = Trainer(objective, batches, config, worker=worker, checkpoints=states)
    trainer.add_hook(lambda info: moments.append(time.perf_counter()))
    dist.barrier()
    started = time.perf_counter()
    trainer.run()
    return moments[-1] - started


def state_bytes(folder: Path) -> int:
    """Size of one state."""
    newest = max(folder.glob("step-*"))
    return sum(file.stat().st_size for file in newest.iterdir())


def report(seconds: dict[str, list[float]], options: argparse.Namespace, size: int) -> None:
    """Print the table and the line of JSON."""
    medians = {mode: statistics.median(values) for mode, values in seconds.items()}
    print(f"{options.preset}, {options.workers} processes of 1 core, {options.batch_size} sequences a step,")
    print(f"{size / 2**20:.0f} MiB of state every {options.every} steps; {options.steps} steps a round\n")
    print(f"{'states':<14}{'s a round':>12}{'cost':>10}     rounds")
    between = options.every * medians["without"] / options.steps
    states = (options.steps - 1) // options.every
    cost = {mode: (medians[mode] - medians["without"]) / states / between for mode in seconds}
    for mode in seconds:
        rounds = " ".join(f"{value:.2f}" for value in seconds[mode])
        print(f"{mode:<14}{medians[mode]:>12.2f}{cost[mode]:>10.2%}     {rounds}")
    print()
    print(
        json.dumps(
            {
                "preset": options.preset,
                "state_mib": round(size / 2**20, 1),
                "every": options.every,
                **{f"{mode}_cost": round(value, 4) for mode, value in cost.items() if mode != "without"},
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="bert-mini")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=79)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--blocking", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--port", type=int, default=18230)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headway-states-") as folder:
        mp.spawn(measure, (options, folder), nprocs=options.workers)


if __name__ == "__main__":
    main()
