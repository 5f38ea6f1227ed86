"""Passwords in addresses, kept out of all that people and dashboards are shown."""

from __future__ import annotations

import re

_RULES = (
    # https://user:password@host; a password may hold an @, but neither a slash nor white space.
    (re.compile(r"(?<=://)([^\s/:@'\"]*):[^\s/'\"]*@"), r"\1:***@"),
    # https://token@host
    (re.compile(r"(?<=http://)[^\s/:@'\"]+@|(?<=https://)[^\s/:@'\"]+@"), "***@"),
    # postgresql://host/database?user=…&password=…
    (re.compile(r"([?&](?:ssl)?(?:password|passwd|pwd|token|secret)=)[^&\s'\"]*", re.IGNORECASE), r"\1***"),
)


def redacted(text: object) -> str:
    """A text without the passwords of the addresses in it: `https://ann:***@host` for `https://ann:x@host`."""
    shown = str(text)
    for pattern, replacement in _RULES:
        shown = pattern.sub(replacement, shown)
    return shown


def holds_secret(address: str) -> bool:
    """Whether an address has a part that nobody should be shown."""
    return redacted(address) != address
