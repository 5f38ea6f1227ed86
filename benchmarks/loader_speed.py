"""How many tokens/s the loader makes into batches, beside the code it replaced and the limit of numpy.

    python benchmarks/loader_speed.py                     # about 2 minutes
    python benchmarks/loader_speed.py --seconds 0.3 --rounds 1

Batches of 512 sequences of 128 tokens at most: masked words of BBC paragraphs, and pairs for next-sentence
prediction of whole BBC articles. One, two and four processes make them, and another, which counts them, takes
them from shared memory. Beside them stand, in one process and without a way to another, the code that made
batches row by row, and the limit: one random number and one gathered token each, and nothing else.

Every contestant has a turn in each round; the figure is the median of its rounds. Needs torch, transformers
and numpy only; without the package with the articles, made-up documents of like lengths stand in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lib.paragraphs import MAX_LENGTH, Paragraphs, load_articles, load_paragraphs
from lib.row_by_row import RowByRowBatches

from headway.config.pretrain import MaskingConfig
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.sampling import BatchSizes
from headway.engine.loading.loader import Loader

SEQUENCES = 512
PROCESSES = (1, 2, 4)
Kind = Literal["words", "pairs"]


class Contestant(NamedTuple):
    """What makes batches.

    Attributes:
        name: in the table.
        tokens: starts it, and then yields the tokens of each batch.
    """

    name: str
    tokens: Callable[[], Iterator[int]]


def contestants(text: Paragraphs, kind: Kind) -> list[Contestant]:
    pairs: Literal["nsp"] | None = "nsp" if kind == "pairs" else None
    batches = PretrainingBatches(
        text.store,
        text.tokenizer,
        max_length=MAX_LENGTH,
        masking=MaskingConfig(),
        pairs=pairs,
        batch_sizes=BatchSizes(SEQUENCES),
        seed=0,
    )
    old = RowByRowBatches(text.store, text.tokenizer, MAX_LENGTH, pairs, SEQUENCES)

    def loaded(processes: int) -> Iterator[int]:
        def make(step: int) -> list[Any]:
            return batches.micro_batches(step, 0, 1, 1)

        with Loader(make, 0, 10**9, device=torch.device("cpu"), processes=processes) as loader:
            for _, host, _ in loader:
                yield sum(len(batch.input_ids) for batch in host)

    def row_by_row() -> Iterator[int]:
        step = 0
        while True:
            yield len(old.batch(step)["input_ids"])
            step += 1

    ours = [Contestant(f"{n} process{'es' * (n > 1)}", partial(loaded, n)) for n in PROCESSES]
    return [Contestant("limit", partial(limit, text)), Contestant("row by row", row_by_row), *ours]


def limit(text: Paragraphs) -> Iterator[int]:
    """One random number and one gathered token for each token, as fast as numpy has them."""
    tokens = np.asarray(text.store.tokens)
    rng = np.random.Generator(np.random.SFC64(0))
    size = SEQUENCES * MAX_LENGTH
    starts = rng.integers(0, len(tokens) - MAX_LENGTH, SEQUENCES)
    places = (starts[:, None] + np.arange(MAX_LENGTH)).ravel()
    while True:
        rng.random(size, dtype=np.float32)
        tokens.take(places)
        yield size


def rate(contestant: Contestant, seconds: float) -> float:
    """Tokens/s, once it has got going."""
    made = contestant.tokens()
    for _ in range(2 * max(PROCESSES) + 1):
        next(made)
    started, tokens = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < seconds:
        tokens += next(made)
    del made
    return tokens / spent


def compete(text: Paragraphs, kind: Kind, rounds: int, seconds: float) -> dict[str, float]:
    """Median tokens/s of every contestant, and the table of them."""
    rivals = contestants(text, kind)
    rates: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(rounds):
        for rival in rivals:
            rates[rival.name].append(rate(rival, seconds))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    title = {"words": "masked words", "pairs": "masked words and pairs of sentences"}[kind]
    print(f"\n{title}: {text.origin}, {SEQUENCES} sequences of up to {MAX_LENGTH} tokens")
    print(f"{'':<14}{'tokens/s':>14}{'x row by row':>14}{'of the limit':>14}{'spread':>9}")
    for name, median in medians.items():
        spread = (max(rates[name]) - min(rates[name])) / median
        ratio, of_limit = median / medians["row by row"], median / medians["limit"]
        print(f"{name:<14}{median:>14,.0f}{ratio:>14.2f}{of_limit:>14.3f}{spread:>9.2f}", flush=True)
    return medians


def cpu_model() -> str:
    """The name that Linux gives the CPU, and whether it has AVX-512."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    wide = any("avx512f" in line for line in lines)
    return f"{names[0] if names else platform.processor()}{', AVX-512' if wide else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contestant in each round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # More processes than cores are no mistake here.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    cores = len(os.sched_getaffinity(0))
    print(f"{cpu_model()}, {cores} cores, load {os.getloadavg()[0]:.1f} at the start")
    words = compete(load_paragraphs(), "words", options.rounds, options.seconds)
    pairs = compete(load_articles(), "pairs", options.rounds, options.seconds)
    print(json.dumps(summary(words, pairs) | {"cpu": cpu_model(), "cores": cores}))


def summary(words: dict[str, float], pairs: dict[str, float]) -> dict[str, Any]:
    """The figures of the claim, in one flat object."""
    one, one_of_pairs = words["1 process"], pairs["1 process"]
    return {
        "benchmark": "loader_speed",
        "tokens_per_second_one_process": round(one),
        "ratio_to_limit": round(one / words["limit"], 4),
        "ratio_to_row_by_row": round(one / words["row by row"], 2),
        "tokens_per_second_one_process_pairs": round(one_of_pairs),
        "ratio_to_limit_pairs": round(one_of_pairs / pairs["limit"], 4),
        "ratio_to_row_by_row_pairs": round(one_of_pairs / pairs["row by row"], 2),
        "two_processes_speedup": round(words["2 processes"] / one, 2),
        "two_processes_speedup_pairs": round(pairs["2 processes"] / one_of_pairs, 2),
    }


if __name__ == "__main__":
    main()
