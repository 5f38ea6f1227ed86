"""Run one contestant in this process, and leave the process as it was."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from functools import cache, partial

import torch

from headway.engine.hardware.device import compute_dtype
from headway.engine.hardware.peak_rate import matrix_product_rate, peak_memory_bytes
from lib.paragraphs import Paragraphs, load_paragraphs
from lib.training_speed.clock import Clock
from lib.training_speed.headway_contestant import run_headway
from lib.training_speed.loop_contestant import run_loop
from lib.training_speed.results import Conditions, Failure, Job, Outcome, Speed
from lib.training_speed.setup import Setup, useful_flops_per_token
from lib.training_speed.sizes import SIZES
from lib.training_speed.trainer_contestant import run_trainer

_RUN: dict[str, Callable[[Setup, Clock], None]] = {
    "headway": run_headway,
    "trainer": run_trainer,
    "trainer_grouped": partial(run_trainer, grouped=True),
    "trainer_packed": partial(run_trainer, packed=True),
    "trainer_compiled": partial(run_trainer, compiled=True),
    "trainer_packed_compiled": partial(run_trainer, packed=True, compiled=True),
    "loop": run_loop,
    "loop_compiled": partial(run_loop, compiled=True),
}


def measure(job: Job, conditions: Conditions) -> Outcome:
    """The speed of one contestant.

    Raises:
        Exception: whatever the contestant raises.
    """
    if job.contestant.endswith("compiled") and conditions.device == "cpu" and not _has_compiler():
        return Failure("torch.compile needs a C++ compiler on a CPU, and there is none")
    size, device = SIZES[job.size], torch.device(conditions.device)
    paragraphs = _paragraphs(size.max_length)
    setup = Setup(
        size, paragraphs, device, size.sequences[device.type], conditions.peer_loaders, conditions.compile
    )
    steps = conditions.steps or (None if conditions.seconds else size.cpu_steps)
    before = _matrix_product_rate(device)
    # On a GPU, graphs compiled for an earlier contestant may still hold weights of its.
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    clock = Clock(device, steps=steps, seconds=conditions.seconds)
    _RUN[job.contestant](setup, clock)
    has_own_memory = device.type == "cuda" or not conditions.shares_process
    memory = peak_memory_bytes(device) - held if has_own_memory else None
    rate = max(before, _matrix_product_rate(device))
    speed = clock.tokens / clock.seconds
    return Speed(
        tokens_per_second=speed,
        utilisation=speed * useful_flops_per_token(size, paragraphs) / rate,
        seconds_per_step=clock.seconds / clock.steps,
        bytes_per_token=memory / (clock.tokens / clock.steps) if memory else None,
        warmup_seconds=clock.warmup_seconds,
        steps=clock.steps,
        late_compilations=clock.late_compilations,
        text=paragraphs.origin,
    )


def clean_up(environment: dict[str, str], device: torch.device) -> None:
    """Free what a contestant held and undo what it set, so that the next one starts like the first.

    Args:
        environment: as it was before; transformers' Trainer hands its settings on to accelerate in it.
        device: whose memory is freed.

    Raises:
        RuntimeError: the GPU is of no more use to this process.
    """
    os.environ.clear()
    os.environ.update(environment)
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@cache
def _paragraphs(max_length: int) -> Paragraphs:
    return load_paragraphs(max_length)


def _matrix_product_rate(device: torch.device) -> float:
    matrix_product_rate.cache_clear()
    return matrix_product_rate(compute_dtype("auto", device), device)


def _has_compiler() -> bool:
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"]))
