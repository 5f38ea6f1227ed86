"""The process that measures: contestants one after the other, each answered as soon as it is done."""

from __future__ import annotations

import os
import platform
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from lib.training_speed.results import Conditions, Failure, Job, Machine, Outcome

if TYPE_CHECKING:
    import torch

GO_ON_ELSEWHERE = 75
"""Exit code of a process in which nothing can be measured any more, through no fault of the next job's."""


def work(jobs: Sequence[Job], conditions: Conditions, answers: Connection, log: Path) -> None:
    """Send a `Machine`, and then the outcome of each job.

    Args:
        jobs: in their order.
        conditions: for all of them.
        answers: where outcomes go.
        log: where everything goes that libraries print, and why contestants failed.
    """
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    # Not at the top: what libraries say while they load belongs into the log, and the process that waits
    # for the outcomes loads this file too, and needs none of them.
    import torch

    from lib.training_speed.measure import clean_up, measure

    device = torch.device(conditions.device)
    environment = dict(os.environ)
    answers.send(_machine(device))
    for job in jobs:
        outcome: Outcome
        try:
            outcome = measure(job, conditions)
        except Exception as error:
            traceback.print_exc()
            outcome = Failure(_in_a_line(error))
        answers.send(outcome)
        try:
            clean_up(environment, device)
        except Exception:
            # After an illegal access to memory, nothing runs on the GPU in this process any more.
            traceback.print_exc()
            sys.exit(GO_ON_ELSEWHERE)


def _machine(device: torch.device) -> Machine:
    import torch
    import transformers

    from headway.engine.hardware.device import has_fast_bf16

    is_gpu = device.type == "cuda"
    return Machine(
        device_name=torch.cuda.get_device_name(device) if is_gpu else f"{platform.machine()} CPU",
        precision="bf16" if has_fast_bf16(device) else "fp32",
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def _in_a_line(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:160]
