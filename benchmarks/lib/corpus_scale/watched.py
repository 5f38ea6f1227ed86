"""Run a command, and measure the memory of all processes that come of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

_SECONDS_BETWEEN_LOOKS = 0.5


def watched(arguments: list[str], environment: dict[str, str], limit: int, timeout: float) -> dict[str, Any]:
    """The JSON that a Python module printed last, with `peak_mb`; or `error`, in words.

    Memory is the proportional set size (PSS) of the process and all below it: what several share counts once.

    Args:
        arguments: of `python -m`.
        environment: of the process.
        limit: bytes of all together; beyond, they are killed.
        timeout: seconds.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=output, stderr=errors, env=environment
        )
        peak, began, problem = 0, time.monotonic(), ""
        family: list[psutil.Process] = []
        while process.poll() is None and not problem:
            family = _family(process.pid)
            peak = max(peak, sum(map(_memory, family)))
            if peak > limit:
                problem = f"more than {limit / 1e9:.1f} GB"
            elif time.monotonic() - began > timeout:
                problem = f"longer than {timeout:.0f} s"
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if problem:
            for member in family:
                with contextlib.suppress(psutil.Error):
                    member.kill()
        process.wait()
        measured: dict[str, Any] = {"peak_mb": peak / 1e6}
        if problem or process.returncode:
            errors.seek(0)
            last = (errors.read().decode(errors="replace").strip().splitlines() or ["it failed"])[-1]
            return {**measured, "error": problem or last}
        output.seek(0)
        return {**json.loads(output.read().splitlines()[-1]), **measured}


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def _memory(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error, OSError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
