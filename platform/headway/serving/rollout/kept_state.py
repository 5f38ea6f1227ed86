"""What outlives a gateway of its roll-outs: the version that serves, and those that were refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from headway.serving.scheduling.messages import Release


class KeptState(NamedTuple):
    """Of one model.

    Attributes:
        serving: the version that answers.
        refused: versions that failed their check, and why.
    """

    serving: Release
    refused: Mapping[Release, str] = {}


def dump_states(states: Mapping[str, KeptState]) -> bytes:
    """The states of all models, by their names, as JSON."""
    content = {
        name: {"serving": state.serving, "refused": [[*one, reason] for one, reason in state.refused.items()]}
        for name, state in states.items()
    }
    return json.dumps(content).encode()


def load_states(content: bytes | None) -> dict[str, KeptState]:
    """What `dump_states` has written; nothing if there is none."""
    stored = json.loads(content) if content else {}
    return {
        name: KeptState(
            Release(*state["serving"]), {Release(*one): reason for *one, reason in state["refused"]}
        )
        for name, state in stored.items()
    }
