"""What else happens between steps: hooks that a trainer calls, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from headway.engine.training.meter import Metrics


@dataclass
class StepInfo:
    """What a hook is told, and what it can ask for.

    Attributes:
        step: steps done; 0 before the first.
        total_steps: steps of the whole run.
        metrics: what was measured after this step, the same on every worker; often nothing.
        stop: a hook sets it, on any worker, to end the run after this step with its state saved; before the
            first step it has no effect.
    """

    step: int
    total_steps: int
    metrics: Metrics = field(default_factory=dict)
    stop: bool = False


Hook = Callable[[StepInfo], None]
"""Called after a step, on every worker alike."""


class _Entry(NamedTuple):
    hook: Hook
    every: int | None
    at: Collection[int]

    def is_due(self, step: int) -> bool:
        return step in self.at or (self.every is not None and step > 0 and step % self.every == 0)


class Hooks:
    """Hooks in the order in which they are called."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def add(self, hook: Hook, every: int | None = None, at: Collection[int] = ()) -> None:
        """Call a hook every so many steps, and at further steps; step 0 is before the first.

        Without either it is called whenever `run` is, whatever that is for.
        """
        self._entries.append(_Entry(hook, every, at))

    def are_due(self, step: int) -> bool:
        """Whether some hook asks to be called after this step."""
        return any(entry.is_due(step) for entry in self._entries)

    def run(self, info: StepInfo) -> None:
        """Call those that are due, and those that come along."""
        for entry in self._entries:
            if entry.is_due(info.step) or (entry.every is None and not entry.at):
                entry.hook(info)
