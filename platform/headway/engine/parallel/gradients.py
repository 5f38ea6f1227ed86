"""Sum gradients over micro-batches and average them over workers, in float32.

Backward computes gradients of the weights that are computed with, perhaps in half precision. They are
converted to float32 before they are summed, so a sum over eight micro-batches, or a thousand workers, is as
exact as in a single process. Gradients are stored in flat buckets, those of the last weights first, since
backward computes them first. A bucket is averaged while backward continues (Li et al. 2020, "PyTorch
Distributed", section 3.2). The order of weights in the buckets is the same in every process and every run,
and so is the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET_NUMBERS = 25 * 2**20 // 4
"""As large as PyTorch's buckets: large enough to use the network well, and small enough to begin early."""

Average = Callable[[Tensor], "dist.Work | None"]
"""Averages a flat tensor over the workers, in place; returns what to wait for, if it is not done yet."""


class Gradients:
    """Collects the gradients of `copies`, and gives their sums and means to `weights`.

    Args:
        weights: the weights to optimise.
        copies: the weights to compute with, in the same order; perhaps the very same.
        average: averages over the workers; None if there is a single one.
    """

    def __init__(self, weights: Sequence[Tensor], copies: Sequence[Tensor], average: Average | None) -> None:
        self._weights, self._copies, self._average = list(weights), list(copies), average
        self._are_apart = any(weight is not copy for weight, copy in zip(weights, copies, strict=True))
        self._buckets: list[_Bucket] = []
        self._views: list[Tensor] = []
        if self._are_apart or average is not None:
            self._lay_out()
        self._filled: set[int] = set()
        """Indices of the weights that have had a gradient since the last step."""

    def _lay_out(self) -> None:
        views: list[Tensor | None] = [None] * len(self._weights)
        for members in _in_buckets(self._weights):
            sizes = [self._weights[index].numel() for index in members]
            flat = torch.zeros(sum(sizes), dtype=torch.float32, device=self._weights[members[0]].device)
            self._buckets.append(_Bucket(flat, members))
            for index, part in zip(members, flat.split(sizes), strict=True):
                views[index] = part.view_as(self._weights[index])
        self._views = [view for view in views if view is not None]

    @contextmanager
    def collected(self, is_last: bool) -> Iterator[None]:
        """Collect the gradients of a backward pass in this block; after the last one, average them."""
        if not self._views:
            yield
        elif self._average is None or not is_last:
            yield
            self._take_all()
        else:
            with self._averaging():
                yield

    @torch.no_grad()
    def give(self, divisor: Tensor | None = None) -> None:
        """Set the weights' gradients to the sums; weights that backward did not reach have none.

        Args:
            divisor: float32 scalar on the device that divides all gradients: the loss scale, if there is one.
        """
        if divisor is not None and self._filled:
            torch._foreach_div_([self._views[index] for index in self._filled], divisor)
        for index in self._filled:
            self._weights[index].grad = self._views[index]
        self._filled = set()

    @torch.no_grad()
    def _take_all(self) -> None:
        """Collect all gradients at once, in a few kernels."""
        reached = [index for index, copy in enumerate(self._copies) if copy.grad is not None]
        for is_first in (True, False):
            indices = [index for index in reached if (index not in self._filled) == is_first]
            if indices:
                views = [self._views[index] for index in indices]
                gradients: list[Any] = [self._copies[index].grad for index in indices]
                (torch._foreach_copy_ if is_first else torch._foreach_add_)(views, gradients)
        for index in reached:
            self._copies[index].grad = None
        self._filled.update(reached)

    @torch.no_grad()
    def _take(self, index: int) -> None:
        gradient = self._copies[index].grad
        assert gradient is not None
        if index in self._filled:
            self._views[index].add_(gradient)
        else:
            self._views[index].copy_(gradient)
            self._filled.add(index)
        self._copies[index].grad = None

    @contextmanager
    def _averaging(self) -> Iterator[None]:
        """Average each bucket once backward has filled it, in the same order on every worker."""
        assert self._average is not None
        average = self._average
        owner = {index: bucket for bucket in self._buckets for index in bucket.members}
        missing = {id(bucket): len(bucket.members) for bucket in self._buckets}
        waiting = list(self._buckets)
        works: list[dist.Work] = []

        def begin() -> None:
            bucket = waiting.pop(0)
            for index in bucket.members:
                if index not in self._filled:
                    self._views[index].zero_()
            work = average(bucket.flat)
            if work is not None:
                works.append(work)

        def take(index: int) -> None:
            self._take(index)
            missing[id(owner[index])] -= 1
            while waiting and not missing[id(waiting[0])]:
                begin()

        hooks = [
            copy.register_post_accumulate_grad_hook(lambda _, index=index: take(index))
            for index, copy in enumerate(self._copies)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        while waiting:  # buckets with weights that backward did not reach
            begin()
        for work in works:
            work.wait()


class _Bucket:
    """The gradients of some weights, end to end; `members` are the weights' indices."""

    def __init__(self, flat: Tensor, members: Sequence[int]) -> None:
        self.flat, self.members = flat, members


def _in_buckets(weights: Sequence[Tensor]) -> Iterator[list[int]]:
    """Indices of the weights of each bucket, the last weights first."""
    members: list[int] = []
    numbers = 0
    for index in reversed(range(len(weights))):
        if members and numbers + weights[index].numel() > _BUCKET_NUMBERS:
            yield members
            members, numbers = [], 0
        members.append(index)
        numbers += weights[index].numel()
    if members:
        yield members
