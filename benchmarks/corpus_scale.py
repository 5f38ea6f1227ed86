"""Corpora of growing size under one limit of memory, beside `datasets.map` and the tokenizer's own limit.

    python benchmarks/corpus_scale.py                          # 0.25, 1 and 4 GB
    python benchmarks/corpus_scale.py --sizes 0.05 0.1         # some minutes

The text is made by a seeded generator from paragraphs of BBC News; one document in 20 is an exact copy. All
use the same WordPiece tokenizer, which is trained before and not timed:

    headway        the corpus step on Ray Data: copies dropped, split by hash, sentences found, the token
                   store written; timed from the connection to the cluster to the finished store
    headway_near   the same with near copies dropped
    tokenizers     `encode_batch_fast` in a loop with the library's own threads: the limit; nothing is dropped
                   or written
    datasets       `load_dataset`, copies dropped by a set of hashes, `map` with a process a core

`tokenizers` and `datasets` read the smallest size; Headway all of them. Each runs in a process of its own.
Memory is the proportional set size of that and all its processes together, the raylet and Ray's object store
among them; above the limit all are killed, and the row says so.

The last line is JSON: the rate of the smallest size over that of `tokenizers` and of `datasets`, in bytes/s;
and the largest size's peak memory and rate over the smallest's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lib.corpus_scale.text import write_text
from lib.corpus_scale.watched import watched
from lib.paragraphs import bbc_paragraphs

from headway.data.corpus.tokenizer import train_tokenizer

COLUMNS = ("", "GB", "seconds", "MB/s", "documents/s", "tokens/s", "peak MB")
VOCABULARY = 30_522


def main() -> None:
    options = parse()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="headway-corpus-scale-"))
    tokenizer = folder / "tokenizer"
    if not tokenizer.is_dir():
        train_tokenizer(bbc_paragraphs(), VOCABULARY, True, 128).save_pretrained(tokenizer)
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    print(" ".join(f"{name:>13}" for name in COLUMNS))
    for size in sorted(options.sizes):
        source = folder / f"text-{size:g}"
        write_text(source, int(size * 1e9))
        names = options.contestants if size == min(options.sizes) else ["headway"]
        for name in names:
            rows[name, size] = measure(name, source, tokenizer, folder, options)
            print_row(name, size, rows[name, size])
        if options.folder is None and size != min(options.sizes):
            shutil.rmtree(source)
    print(json.dumps(summary(rows, min(options.sizes), max(options.sizes))))
    if options.folder is None:
        shutil.rmtree(folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = ["headway", "headway_near", "tokenizers", "datasets"]
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.25, 1.0, 4.0], help="GB of JSONL")
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    parser.add_argument("--limit", type=float, default=4.0, help="GB of memory for all processes together")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for each row")
    parser.add_argument("--folder", type=Path, help="to keep the text in, for other runs")
    return parser.parse_args()


def measure(
    name: str, source: Path, tokenizer: Path, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """What a contestant measured, with its rates."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    arguments = ["lib.corpus_scale.contestants", name, str(source), str(tokenizer), str(output)]
    row = watched(arguments, environment, int(options.limit * 1e9), options.timeout)
    if "error" not in row:
        size = sum(path.stat().st_size for path in source.glob("*.jsonl"))
        row |= {f"{what}_per_second": row[what] / row["seconds"] for what in ("documents", "tokens")}
        row["mb_per_second"] = size / 1e6 / row["seconds"]
    shutil.rmtree(output)
    return row


def print_row(name: str, size: float, row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"{name:>13} {size:>13g} {row['error']}; peak {row['peak_mb']:,.0f} MB", flush=True)
        return
    figures = [row[key] for key in ("mb_per_second", "documents_per_second", "tokens_per_second", "peak_mb")]
    cells = [f"{size:g}", f"{row['seconds']:.1f}", f"{figures[0]:.2f}", *(f"{n:,.0f}" for n in figures[1:])]
    print(" ".join(f"{cell:>13}" for cell in (name, *cells)), flush=True)


def summary(rows: dict[tuple[str, float], dict[str, Any]], small: float, large: float) -> dict[str, Any]:
    """The ratios; None where a row failed or was not asked for."""

    def ratio(one: tuple[str, float], other: tuple[str, float], figure: str) -> float | None:
        first, second = (rows.get(key, {"error": "not measured"}) for key in (one, other))
        if "error" in first or "error" in second:
            return None
        return round(float(first[figure] / second[figure]), 3)

    mine = ("headway", small)
    return {
        "ratio_vs_tokenizer_limit": ratio(mine, ("tokenizers", small), "mb_per_second"),
        "ratio_vs_datasets_map": ratio(mine, ("datasets", small), "mb_per_second"),
        "memory_ratio_largest_to_smallest": ratio(("headway", large), mine, "peak_mb"),
        "throughput_ratio_largest_to_smallest": ratio(("headway", large), mine, "mb_per_second"),
    }


if __name__ == "__main__":
    main()
