"""The command line is stopped or killed in the middle of a training run, and starts again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from headway.runs.journal import read_journal
from headway.tracking import Tracking
from waiting import PATIENCE

TIMINGS = {"tokens_per_second", "utilisation", "peak_memory_gib", "startup_seconds"}


def write_texts(folder: Path) -> None:
    rng = random.Random(1)
    words = ["boat", "mast", "rose", "hedge", "soup", "bread", "old", "small", "sailor", "cooks", "paints"]
    folder.mkdir()
    for number in range(30):
        sentences = [" ".join(rng.choices(words, k=8)).capitalize() + "." for _ in range(12)]
        (folder / f"{number}.txt").write_text(" ".join(sentences))


def write_pipeline(folder: Path, steps: int) -> Path:
    write_texts(folder / "texts")
    settings: dict[str, Any] = {
        "use": "pretrain",
        "corpus": {"source": str(folder / "texts"), "vocab_size": 100, "max_length": 32},
        "model": {"preset": "bert-tiny", "hidden_size": 32, "num_attention_heads": 2},
        "steps": steps,
        "batch_size": 8,
        "log_every": 3,
        "checkpoint_every": 20,
    }
    path = folder / "pipeline.json"
    path.write_text(json.dumps({"name": "resume", "steps": {"pretrain": settings}}))
    return path


class Drive:
    """`headway run` in a process of its own."""

    def __init__(self, pipeline: Path, runs: Path) -> None:
        self.runs = runs
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HEADWAY_DEBUG": "1"}
        command = [sys.executable, "-m", "headway.cli.main", "run", str(pipeline), "--runs", str(runs)]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    @property
    def folder(self) -> Path | None:
        return next((self.runs / "resume" / "pretrain").glob("*"), None)

    def step(self) -> int:
        """The last step in the journal."""
        entries = read_journal(self.folder / "journal.jsonl") if self.folder else []
        return entries[-1].step if entries else -1

    def signal_after(self, step: int, number: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.step() < step and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        self.process.send_signal(number)

    def finish(self) -> int:
        self.output, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


def history(drive: Drive) -> dict[str, list[tuple[int, float]]]:
    """Every metric in MLflow but timings."""
    client = Tracking.at(drive.runs).client
    experiment = client.get_experiment_by_name("resume").experiment_id
    [run] = client.search_runs([experiment], "attributes.run_name = 'pretrain'")
    assert run.info.status == "FINISHED"
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if name not in TIMINGS
    }


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("pipeline"), steps=150)


@pytest.fixture(scope="module")
def untouched(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Drive:
    drive = Drive(pipeline, tmp_path_factory.mktemp("untouched"))
    assert drive.finish() == 0, drive.output
    return drive


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_run_that_was_ended_goes_on_exactly(
    pipeline: Path, untouched: Drive, tmp_path: Path, number: signal.Signals
) -> None:
    shutil.copytree(untouched.runs / "stores", tmp_path / "stores")
    first = Drive(pipeline, tmp_path)
    first.signal_after(33, number)
    code = first.finish()
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL), first.output
    assert first.folder and not (first.folder / "model").exists()
    states = sorted(path.parent.name for path in first.folder.glob("state/*/manifest.json"))
    if number == signal.SIGTERM:
        # Every third step is in the journal, and only every twentieth has a state by itself.
        assert 0 <= int(states[-1].split("-")[1]) - first.step() < 3, "no state was saved where it stopped"
    second = Drive(pipeline, tmp_path)
    assert second.finish() == 0, second.output
    assert second.folder and untouched.folder
    expected = load_file(untouched.folder / "model" / "model.safetensors")
    weights = load_file(second.folder / "model" / "model.safetensors")
    assert all(bool((weights[name] == expected[name]).all()) for name in expected)
    assert history(second) == history(untouched)
