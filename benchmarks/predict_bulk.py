"""`headway predict` of millions of short texts, its driver killed twice on the way.

    python benchmarks/predict_bulk.py                     # 5,000,000 texts
    python benchmarks/predict_bulk.py --texts 100000      # 3 minutes on 2 cores

Texts of 5 to 12 words are drawn by a seed and written as JSON lines. A tiny BERT with random weights embeds
them, in a command of its own that is killed with SIGKILL once a third, and once two thirds of the parts are
there; each time the same command goes on. Then the whole output is read: every row has to be there exactly
once, in order, with its own text and a vector of unit length.

The rate counts what each command computed over its whole time, its start and a killed command's unfinished
parts included.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
import torch
from transformers import BertConfig, BertModel

from headway.data.corpus.tokenizer import train_tokenizer

WORDS = [
    "the",
    "a",
    "old",
    "quiet",
    "sailor",
    "baker",
    "child",
    "steers",
    "slices",
    "boat",
    "bread",
    "ferry",
    "at",
    "dawn",
]
KILLS = 2
PAUSE = 0.05


def text(i: int, seed: int) -> str:
    """Text number `i`."""
    rng = random.Random(seed * 1_000_003 + i)
    return f"{i} " + " ".join(rng.choices(WORDS, k=rng.randrange(4, 12)))


def write_texts(path: Path, count: int, seed: int) -> None:
    with path.open("w") as file:
        file.writelines(f'{{"id": {i}, "text": "{text(i, seed)}"}}\n' for i in range(count))


def save_encoder(folder: Path, seed: int) -> None:
    """A BERT of 2 layers of 128 columns."""
    tokenizer = train_tokenizer([text(i, seed) for i in range(2000)], 500, lowercase=True, max_length=64)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Driver:
    """The command, until it ends or is killed.

    Attributes:
        peak: the most memory that its process had, bytes.
        seconds: that it took.
    """

    def __init__(self, folder: Path, output: str) -> None:
        code = "from headway.cli.main import main; main()"
        options = {"model": "model", "input": "texts.jsonl", "output": output, "runs": "runs"}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._parts = folder / f".{output.rstrip('/')}.parts" / "parts"
        self._began, self.peak = time.monotonic(), 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "predict", *arguments, "--dtype", "float16"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )

    def run(self, kill_at: int | None = None) -> None:
        """Wait for the end, or kill it once so many parts are there."""
        while self._process.poll() is None:
            self._measure()
            if kill_at is not None and self._finished() >= kill_at:
                self._process.send_signal(signal.SIGKILL)
                break
            time.sleep(PAUSE)
        code = self._process.wait()
        self.seconds = time.monotonic() - self._began
        assert code == (0 if kill_at is None else -signal.SIGKILL), f"the command ended with {code}"

    def _measure(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status")
        try:
            lines = status.read_text().splitlines()
        except OSError:  # it has just ended
            return
        peaks = [int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")]
        self.peak = max(self.peak, *peaks) if peaks else self.peak

    def _finished(self) -> int:
        return len(list(self._parts.iterdir())) if self._parts.is_dir() else 0


def planned_parts(folder: Path, output: str) -> int:
    """How many parts there are, once the command has checked all rows."""
    plan = folder / f".{output.rstrip('/')}.parts" / "plan.json"
    while not plan.is_file():
        time.sleep(PAUSE)
    return len(json.loads(plan.read_text())["parts"])


def check(folder: Path, output: str, count: int, seed: int) -> int:
    """The number of rows in the output, which are all there once and in order."""
    seen = 0
    paths = sorted((folder / output).glob("*.parquet")) if output.endswith("/") else [folder / output]
    for path in paths:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            ids = batch["id"].to_numpy()
            np.testing.assert_array_equal(ids, np.arange(seen, seen + len(ids)))
            texts = batch["text"].to_pylist()
            assert all(found == text(i, seed) for i, found in zip(ids.tolist(), texts, strict=True))
            vectors = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1)
            lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
            assert np.abs(lengths - 1).max() < 0.01
            seen += len(ids)
    assert seen == count, f"{seen} rows of {count}"
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--texts", type=int, default=5_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="vectors.parquet", help="with / at its end: a folder of parts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headway-benchmark-") as name:
        folder = Path(name)
        write_texts(folder / "texts.jsonl", options.texts, options.seed)
        save_encoder(folder / "model", options.seed)
        drivers = []
        parts = 0
        for turn in range(KILLS + 1):
            driver = Driver(folder, options.output)
            drivers.append(driver)
            parts = parts or planned_parts(folder, options.output)
            driver.run(parts * (turn + 1) // (KILLS + 1) if turn < KILLS else None)
            print(
                f"command {turn + 1}: {driver.seconds:.0f} s, {driver.peak / 2**20:.0f} MB at most"
                + (", killed" if turn < KILLS else ""),
                flush=True,
            )
        rows = check(folder, options.output, options.texts, options.seed)
    seconds = sum(driver.seconds for driver in drivers)
    result = {
        "benchmark": "predict_bulk",
        "rows": rows,
        "exactly_once_in_order": True,  # `check` ends the program otherwise
        "parts": parts,
        "driver_kills": KILLS,
        "driver_peak_mb": round(max(driver.peak for driver in drivers) / 2**20),
        "texts_per_second": round(rows / seconds),
        "seconds": round(seconds),
        "cores": psutil.cpu_count(),
    }
    print(f"{rows:,} rows in {parts:,} parts: {rows / seconds:,.0f} texts/s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
