"""A single step that was interrupted: the same command, or the same call, continues it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

import headway
from headway.cli.main import main
from headway.runs.journal import read_journal
from headway.tracking import Tracking
from waiting import wait_until

STEPS = 300


@contextmanager
def interrupted_at(step: int, runs: Path) -> Iterator[None]:
    """Tell this process to end once some run under `runs` has come so far."""

    def interrupt() -> None:
        def is_there() -> bool:
            entries = [read_journal(path) for path in runs.glob("*/*/journal.jsonl")]
            return any(found and found[-1].step >= step for found in entries)

        wait_until(is_there, poll=0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    yield
    thread.join()


def folders(runs: Path, verb: str) -> list[Path]:
    return sorted((runs / verb).iterdir())


@pytest.fixture
def pretrain(labelled_file: Path, tiny_shape: dict[str, Any]) -> Callable[..., Any]:
    def call(runs: Path, **settings: Any) -> Any:
        corpus = {"vocab_size": 200, "max_length": 32}
        training = {"steps": STEPS, "batch_size": 4, "log_every": 5}
        return headway.pretrain(
            str(labelled_file), model=tiny_shape, runs=runs, quiet=True, **corpus | training | settings
        )

    return call


def test_the_same_call_continues_an_interrupted_run_to_the_same_model(pretrain, tmp_path):
    whole = pretrain(tmp_path / "whole")
    runs = tmp_path / "runs"
    with interrupted_at(40, runs), pytest.raises(KeyboardInterrupt) as interrupt:
        pretrain(runs)
    [folder] = folders(runs, "pretrain")
    assert interrupt.value.__notes__ == [f"the same call continues in {folder}"]
    assert not (folder / "model").exists()

    another = pretrain(runs, steps=2)
    assert another.path.parent != folder, "another number of steps is another run"

    # What has no effect on the result may differ.
    continued = pretrain(runs, keep_checkpoints=3)
    assert continued.path == folder / "model"
    expected, weights = (load_file(result.path / "model.safetensors") for result in (whole, continued))
    assert all(bool((weights[name] == expected[name]).all()) for name in expected)
    client = Tracking.at(runs).client
    history = client.get_metric_history(continued.metrics["mlflow_run_id"], "mlm_loss")
    steps = [metric.step for metric in history]
    assert steps == sorted(set(steps))
    assert steps[0] <= 5

    finished = pretrain(runs, steps=2)
    assert finished.path not in (another.path, continued.path), "what is done is not continued"


def test_the_same_command_continues_an_interrupted_run(encoder, labelled_file, tmp_path, monkeypatch):
    monkeypatch.setattr("headway.cluster.connect.disconnect", lambda: None)
    source = tmp_path / "texts.jsonl"
    source.write_bytes(labelled_file.read_bytes())
    task = {"source": str(source), "max_length": 48}
    settings = {"model": str(encoder), "task": task, "steps": STEPS, "batch_size": 4, "log_every": 5}
    file, runs = tmp_path / "finetune.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(settings))
    command = ["finetune", str(file), "--runs", str(runs)]
    with interrupted_at(40, runs):
        result = CliRunner().invoke(main, command)
    assert result.exit_code == 130, result.output
    assert result.stderr == "interrupted; run the same command again to continue\n"
    [folder] = folders(runs, "finetune")

    # Other rows make it another run.
    source.write_bytes(b"".join(labelled_file.read_bytes().splitlines(keepends=True)[:-1]))
    result = CliRunner().invoke(main, [*command, "--quiet"])
    assert result.exit_code == 0, result.output
    assert f"{folder}/" not in result.stdout  # its name may begin alike: both began in one second

    source.write_bytes(labelled_file.read_bytes())
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert f"continues {folder}; delete it to start from scratch" in result.stdout
    assert result.stdout.splitlines()[-1] == str(folder / "model")
