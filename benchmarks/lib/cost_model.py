"""What a training step costs on so many workers: a model of few terms, each measured or on a data sheet.

    step = max(loader, compute + what of the all-reduce is not hidden behind it + update + copying states)

Compute is FLOPs by the rate reached on one worker. The all-reduce is a ring within a machine, and one ring
over machines for each of its workers (Patarasuk and Yuan 2009): each worker sends 2 (n - 1) / n of the
gradients' bytes. Latency is that of a tree: 2 log2(n) hops a bucket. What can be hidden is hidden behind the
backward pass, two thirds of the compute, except for the last bucket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Encoder:
    """A model's size, as far as a step's cost goes.

    Attributes:
        weights: all of them.
        trunk_weights: of linear layers that every token passes.
        attention_width: hidden size of all layers together.
        head_weights: of linear layers that every masked token passes.
    """

    weights: int
    trunk_weights: int
    attention_width: int
    head_weights: int

    @classmethod
    def bert(cls, layers: int, hidden: int, vocabulary: int) -> Encoder:
        """A BERT of a shape, with its head for masked words, whose large matrix is the embedding's."""
        trunk = layers * 12 * hidden * hidden
        head = hidden * hidden + hidden * vocabulary
        embeddings = hidden * (vocabulary + 512 + 2)
        return cls(trunk + embeddings + 2 * hidden * hidden, trunk, layers * hidden, head)

    def flops(self, sequences: int, length: int, masked_share: float = 0.15) -> float:
        """Of a forward and a backward pass over sequences of one length."""
        tokens = sequences * length
        forward = 2.0 * self.trunk_weights * tokens + 2.0 * self.head_weights * masked_share * tokens
        return 3.0 * (forward + 4.0 * length * tokens * self.attention_width)


@dataclass(frozen=True)
class Link:
    """How fast workers exchange: bytes a second each way for each of them, and seconds a hop."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Machine:
    """Where it trains.

    Attributes:
        rate: FLOP/s that one worker reaches in a forward and backward pass.
        update_seconds: of the optimizer, for each weight.
        inside: between workers of one machine.
        between: between machines, for each worker.
        workers: on one machine.
        units: what computes at the same time on one machine; with more workers than that, they take turns.
        overlaps: whether gradients travel while the rest of the backward pass is computed.
        gradient_bytes: of each weight's gradient, on the wire.
        loader_rate: tokens/s that one worker's loader makes.
        dealing_seconds: that each worker's loader takes to deal a batch out, for each row of all workers.
        copy_rate: bytes/s at which a state is copied before it is written.
        storage_rate: bytes/s at which all workers together write states.
        bucket_bytes: gradients that travel together.
        crowding: by how much all units together are slower than one alone.
    """

    rate: float
    update_seconds: float
    inside: Link
    between: Link
    workers: int
    units: int
    overlaps: bool
    gradient_bytes: int
    loader_rate: float
    dealing_seconds: float
    copy_rate: float
    storage_rate: float
    bucket_bytes: float = 25 * 2**20
    crowding: float = 1.0

    def turns(self, workers: int) -> float:
        """How much longer a worker takes for its work when so many share their machines."""
        here = min(workers, self.workers)
        return max(1.0, here / self.units) * (self.crowding if here > 1 else 1.0)


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step by what they go to; `loader` and `writing` count where they outlast the rest."""

    compute: float
    exchange: float
    update: float
    copying: float
    loader: float
    writing: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return max(self.compute + self.exchange + self.update + self.copying, self.loader, self.writing)

    @property
    def bottleneck(self) -> str:
        """What the step waits for, besides the arithmetic that has to be done."""
        if self.loader >= self.seconds:
            return "loader"
        if self.writing >= self.seconds:
            return "writing states"
        parts = {"all-reduce": self.exchange, "optimizer": self.update, "copying states": self.copying}
        worst = max(parts, key=lambda name: parts[name])
        return "compute" if self.compute >= parts[worst] else worst


def all_reduce_seconds(machine: Machine, size: float, workers: int) -> float:
    """Of summing `size` bytes over all workers, nothing hidden."""
    here = min(workers, machine.workers)
    machines = math.ceil(workers / machine.workers)
    buckets = max(1, math.ceil(size / machine.bucket_bytes))
    inside = 2 * (here - 1) / here * size / machine.inside.bandwidth
    between = 2 * (machines - 1) / machines * size / here / machine.between.bandwidth
    hops = math.log2(here) * machine.inside.latency + math.log2(machines) * machine.between.latency
    return (inside + between + 2 * buckets * hops) * max(1.0, here / machine.units)


def step_cost(
    encoder: Encoder, machine: Machine, workers: int, sequences: int, length: int, states_every: int = 0
) -> StepCost:
    """Of a step in which each worker has so many sequences of a length.

    Args:
        encoder: what is trained.
        machine: where.
        workers: how many, on as few machines as hold them.
        sequences: of each worker.
        length: of each sequence, in tokens.
        states_every: steps between saved states; 0 for none.
    """
    turns = machine.turns(workers)
    compute = encoder.flops(sequences, length) / machine.rate * turns
    size = float(encoder.weights * machine.gradient_bytes)
    exchange = all_reduce_seconds(machine, size, workers) if workers > 1 else 0.0
    if machine.overlaps and exchange:
        last = exchange * min(1.0, machine.bucket_bytes / size)
        exchange = max(last, exchange - compute * 2 / 3)
    state = 12.0 * encoder.weights  # weights and two moments, float32
    return StepCost(
        compute,
        exchange,
        encoder.weights * machine.update_seconds * turns,
        state / workers / machine.copy_rate / states_every if states_every else 0.0,
        sequences * length / machine.loader_rate + sequences * workers * machine.dealing_seconds,
        state / machine.storage_rate / states_every if states_every else 0.0,
    )
