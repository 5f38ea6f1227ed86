"""The table, a row at a time, and the figures of the claim."""

from __future__ import annotations

from typing import Any

from lib.training_speed.results import Conditions, Job, Machine, Outcome, Speed

_COLUMNS = (
    "tokens/s",
    "headway x",
    "utilisation",
    "s/step",
    "tokens/step",
    "KiB/token",
    "warm-up s",
    "steps",
)
_WIDTHS = (12, 11, 13, 9, 13, 11, 11, 7)


def heading() -> str:
    """Of the table."""
    columns = "".join(f"{name:>{width}}" for name, width in zip(_COLUMNS, _WIDTHS, strict=True))
    return f"{'model':<16}{'contestant':<25}{columns}"


def row(job: Job, outcome: Outcome, ours: Outcome | None) -> str:
    """A contestant's row.

    Args:
        job: who trained what.
        outcome: how fast, or why not.
        ours: Headway's outcome with the same model, if there is one yet.
    """
    name = f"{job.size:<16}{job.contestant:<25}"
    if not isinstance(outcome, Speed):
        return f"{name}    failed: {outcome.reason}"
    ratio = f"{_ratio(ours, outcome):.2f}" if isinstance(ours, Speed) else "-"
    memory = "-" if outcome.bytes_per_token is None else f"{outcome.bytes_per_token / 1024:,.0f}"
    cells = (
        *(f"{outcome.tokens_per_second:,.0f}", ratio, f"{outcome.utilisation:.3f}"),
        *(f"{outcome.seconds_per_step:.3f}", f"{outcome.tokens_per_second * outcome.seconds_per_step:,.0f}"),
        *(memory, f"{outcome.warmup_seconds:.1f}", f"{outcome.steps}"),
    )
    figures = "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    late = outcome.late_compilations
    return f"{name}{figures}" + (f"  ({late} graphs compiled while timed)" if late else "")


def summary(outcomes: dict[Job, Outcome], conditions: Conditions, machine: Machine | None) -> dict[str, Any]:
    """The figures of the claim, in one flat object; what failed or is missing has none."""
    figures: dict[str, Any] = {"benchmark": "train_speed", "device": conditions.device}
    if machine is not None:
        figures |= vars(machine)
    speeds = {job: outcome for job, outcome in outcomes.items() if isinstance(outcome, Speed)}
    if speeds:
        figures["text"] = next(iter(speeds.values())).text
    for size in dict.fromkeys(job.size for job in speeds):
        by_contestant = {job.contestant: speed for job, speed in speeds.items() if job.size == size}
        figures |= {f"{name}_{size}": value for name, value in _of_size(by_contestant).items()}
    failed = [f"{contestant}_{size}" for size, contestant in outcomes if (size, contestant) not in speeds]
    return figures | ({"failed": failed} if failed else {})


def _of_size(speeds: dict[str, Speed]) -> dict[str, Any]:
    peers = {name: speed for name, speed in speeds.items() if name != "headway"}
    best = max(peers, key=lambda name: peers[name].tokens_per_second, default=None)
    figures: dict[str, Any] = {} if best is None else {"best_peer": best}
    ours = speeds.get("headway")
    if ours is None:
        return figures
    figures |= {f"ratio_vs_{name}": round(_ratio(ours, speed), 3) for name, speed in peers.items()}
    if best is not None:
        figures["ratio_vs_best_peer"] = round(_ratio(ours, peers[best]), 3)
    figures["tokens_per_second"] = round(ours.tokens_per_second)
    figures["utilisation"] = round(ours.utilisation, 3)
    figures["warmup_seconds"] = round(ours.warmup_seconds, 1)
    trainer = peers.get("trainer")
    if trainer is not None and trainer.bytes_per_token and ours.bytes_per_token:
        figures["memory_ratio_vs_trainer"] = round(ours.bytes_per_token / trainer.bytes_per_token, 3)
    return figures


def _ratio(ours: Speed, theirs: Speed) -> float:
    return ours.tokens_per_second / theirs.tokens_per_second
