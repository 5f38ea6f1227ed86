"""What Ray Train costs a training step: tokens/s of the same job inside one Ray worker and without Ray.

    python benchmarks/ray_overhead.py                 # about 3 minutes on 2 cores

BERT-mini on BBC paragraphs, 64 sequences a step, all cores for either. Rounds alternate; each takes the
median of its reports, so that start-up and the first step do not count.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
from pathlib import Path

import headway
from headway.config import SourceConfig
from headway.data.sources import read_documents


def paragraphs() -> list[str]:
    documents = read_documents(SourceConfig(source="bbc-news"))
    parts = [part for document in documents for part in re.split(r"\n\s*\n", document.text)]
    return [" ".join(part.split()) for part in parts if len(part.split()) >= 8]


def speed(texts: list[str], workers: int, steps: int, runs: Path) -> float:
    """Median tokens/s of one run."""
    result = headway.pretrain(
        texts,
        model={"preset": "bert-mini"},
        objective=["mlm"],
        steps=steps,
        batch_size=64,
        workers=workers,
        log_every=5,
        evaluate_every=steps,
        checkpoint_every=steps,
        validation_rows=64,
        vocab_size=8192,
        runs=runs,
        quiet=True,
    )
    return float(result.metrics["tokens_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    texts = paragraphs()
    speeds: dict[str, list[float]] = {"plain": [], "ray": []}
    with tempfile.TemporaryDirectory(prefix="headway-benchmark-") as runs:
        for _ in range(options.rounds):
            speeds["plain"].append(speed(texts, 0, options.steps, Path(runs)))
            speeds["ray"].append(speed(texts, 1, options.steps, Path(runs)))
    print(f"{'':<8}{'tokens/s':>10}  rounds")
    for name, values in speeds.items():
        rounds = ", ".join(f"{value:,.0f}" for value in values)
        print(f"{name:<8}{statistics.median(values):>10,.0f}  {rounds}")
    ratio = statistics.median(speeds["ray"]) / statistics.median(speeds["plain"])
    print(json.dumps({"benchmark": "ray_overhead", "ratio_ray_to_plain": round(ratio, 3)}))


if __name__ == "__main__":
    main()
