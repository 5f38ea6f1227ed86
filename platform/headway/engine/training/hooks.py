"""Hooks: functions that a trainer calls between steps, and the information that it gives them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from headway.engine.training.meter import Metrics


@dataclass
class StepInfo:
    """What a hook gets to know about a step, and how it asks to stop.

    Attributes:
        step: how many steps are done; 0 before the first.
        total_steps: how many steps the whole run has.
        metrics: what was measured after this step, the same on every worker; often empty.
        stop: set by a hook, on any worker, to save the state and end the run after this step; it has no
            effect before the first step.
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
        """Call a hook every `every` steps, and at the steps `at`; step 0 is before the first.

        Without both, the hook is called whenever `run` is, whichever hooks are due.
        """
        self._entries.append(_Entry(hook, every, at))

    def are_due(self, step: int) -> bool:
        """Whether any hook is due after this step."""
        return any(entry.is_due(step) for entry in self._entries)

    def run(self, info: StepInfo) -> None:
        """Call the hooks that are due, and those without steps of their own."""
        for entry in self._entries:
            if entry.is_due(info.step) or (entry.every is None and not entry.at):
                entry.hook(info)
