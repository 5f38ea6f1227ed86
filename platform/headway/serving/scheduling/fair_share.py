"""Equal shares: the order in which the work of several callers is done, and the part of a buffer for each."""

from __future__ import annotations

import time
from collections import Counter

_ACTIVE_S = 1.0
_MAX_ENDS = 1024


class FairClock:
    """Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): work is done in the order of its start.

    A caller's work starts, in virtual time, when its earlier work would end if it were served at a constant
    rate; or now, if that is over. So who asks for little at a time starts now, and who asks for much at once
    starts later and later.

    For example, one caller brings works of sizes 9, 9 and 9, and another one of size 2. They start at 0, 9,
    18 and 0: the second caller does not wait for all of the first one's work.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[str, float] = {}

    def start(self, caller: str, size: float) -> float:
        """The start of some work that a caller brings."""
        start = max(self._now, self._ends.get(caller, 0.0))
        self._ends[caller] = start + size
        return start

    def advance(self, start: float) -> None:
        """Take note that work with this start is being done."""
        self._now = max(self._now, start)
        if len(self._ends) > _MAX_ENDS:
            self._ends = {caller: end for caller, end in self._ends.items() if end > self._now}


class ActiveCallers:
    """Callers with a request in progress, or with one that ended a moment ago: most ask again soon."""

    def __init__(self) -> None:
        self._asking: Counter[str] = Counter()
        self._left: dict[str, float] = {}

    def enter(self, caller: str) -> None:
        """A request begins."""
        self._asking[caller] += 1
        self._left.pop(caller, None)

    def leave(self, caller: str) -> None:
        """A request ends."""
        self._asking[caller] -= 1
        if not self._asking[caller]:
            del self._asking[caller]
            self._left[caller] = time.monotonic()

    def count(self) -> int:
        """How many there are now."""
        expired = time.monotonic() - _ACTIVE_S
        for caller, left in list(self._left.items()):  # those that left first come first
            if left > expired:
                break
            del self._left[caller]
        return len(self._asking) + len(self._left)


class SharedBuffer:
    """A buffer that several callers fill, of which each may take as much as is left free for the others.

    One caller alone can fill half of it, and two a third each, so there is always space for another (dynamic
    thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking, 1998).

    Attributes:
        capacity: of the buffer.
        used: by all callers together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._held: Counter[str] = Counter()

    @property
    def max_of_one(self) -> int:
        """What one caller can hold if there is no other."""
        return self.capacity // 2

    def accepts(self, caller: str, size: int) -> bool:
        """Whether a caller may add so much."""
        return not size or self._held[caller] + size <= self.capacity - self.used - size

    def add(self, caller: str, size: int) -> None:
        """Count what a caller adds."""
        self.used += size
        self._held[caller] += size

    def remove(self, caller: str, size: int) -> None:
        """Count what is no longer there of a caller's."""
        self.used -= size
        self._held[caller] -= size
        if not self._held[caller]:
            del self._held[caller]

    def held(self) -> dict[str, int]:
        """By caller, what each holds."""
        return dict(self._held)
