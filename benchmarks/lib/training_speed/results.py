"""What is asked of the process that measures, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Job(NamedTuple):
    """One contestant training one model.

    Attributes:
        size: a name in `sizes.SIZES`.
        contestant: a name in `sizes.CONTESTANTS`.
    """

    size: str
    contestant: str


@dataclass(frozen=True)
class Conditions:
    """The same for every contestant.

    Attributes:
        device: cpu or cuda.
        steps: timed steps; by `seconds`, or else by the size's own number, when None.
        seconds: of timed steps.
        peer_loaders: processes that make each peer's batches; Headway chooses for itself.
        shares_process: whether contestants run in one process, one after the other.
        compile: on a GPU, what Headway compiles as one graph: each of the layers, or the trunk.
    """

    device: str
    steps: int | None
    seconds: float | None
    peer_loaders: int
    shares_process: bool
    compile: str = "trunk"


@dataclass(frozen=True)
class Machine:
    """What it all runs on.

    Attributes:
        device_name: of the GPU or the CPU.
        precision: that matrix products are computed in.
        torch: its version.
        transformers: its version.
    """

    device_name: str
    precision: str
    torch: str
    transformers: str


@dataclass(frozen=True)
class Speed:
    """What one contestant reached.

    Attributes:
        tokens_per_second: real ones, without padding.
        utilisation: useful FLOP/s over the machine's matrix-product rate.
        seconds_per_step: mean.
        bytes_per_token: peak memory over the tokens of a step; None if it was not measured by itself.
        warmup_seconds: from the start, before there is a model, to the first timed step.
        steps: that were timed.
        late_compilations: graphs that were compiled during timed steps, which are slower for it.
        text: what was trained on.
    """

    tokens_per_second: float
    utilisation: float
    seconds_per_step: float
    bytes_per_token: float | None
    warmup_seconds: float
    steps: int
    late_compilations: int
    text: str


@dataclass(frozen=True)
class Failure:
    """Why there is no speed."""

    reason: str


Outcome = Speed | Failure
