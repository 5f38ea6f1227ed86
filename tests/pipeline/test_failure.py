"""A failed step leaves in its folder what one needs to find out why."""

from __future__ import annotations

import logging

import pytest
from ray.train import WorkerGroupError

from headway.config.base import ConfigError
from headway.pipeline.failure import NAME, failure_kept


class LostWorkerError(RuntimeError):
    """What a worker raises."""


def test_tracebacks_of_driver_and_workers_and_the_log_are_left_and_the_error_names_the_file(tmp_path):
    texts = {
        rank: f"Traceback (most recent call last):\n  in layer {rank}\nValueError: no" for rank in (0, 1)
    }
    failures = {rank: LostWorkerError(text) for rank, text in texts.items()}
    with pytest.raises(LostWorkerError) as caught, failure_kept(tmp_path / "step"):
        logging.getLogger("headway.somewhere").warning("https://ann:s3cret@tracking is slow")
        try:
            raise WorkerGroupError("two of two", failures)
        except WorkerGroupError:
            raise LostWorkerError("no more workers") from None
    path = tmp_path / "step" / NAME
    assert caught.value.__notes__ == [f"tracebacks and log: {path}"]
    text = path.read_text()
    assert "LostWorkerError: no more workers" in text.splitlines()[1]
    assert "in test_tracebacks_of_driver_and_workers" in text
    assert "== worker 0\nTraceback (most recent call last):\n  in layer 0" in text
    assert "== worker 1\nTraceback (most recent call last):\n  in layer 1" in text
    assert "WARNING headway.somewhere: https://ann:***@tracking is slow" in text
    assert "s3cret" not in text


@pytest.mark.parametrize("error", [ConfigError("steps: -1 is not allowed"), KeyboardInterrupt()])
def test_a_mistake_or_an_interruption_leaves_nothing(error, tmp_path):
    with pytest.raises(type(error)), failure_kept(tmp_path / "step"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_try_left_goes_when_the_step_succeeds(tmp_path):
    with pytest.raises(ValueError, match="no"), failure_kept(tmp_path):
        raise ValueError("no")
    assert (tmp_path / NAME).exists()
    with failure_kept(tmp_path):
        pass
    assert not (tmp_path / NAME).exists()
