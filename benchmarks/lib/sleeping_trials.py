"""A sweep whose trials sleep instead of training: all else is real."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

TOPICS = ("harbour", "kitchen", "garden")


def sleeping_trial(config: dict[str, Any], sweep_job: Any, settings: Any, seconds: float = 1.0) -> None:
    """Stands in for `headway.sweeps.trials.run_trial`: sleeps for so long, and reports all rounds."""
    from ray import tune

    from headway.runs.journal import Journal
    from headway.sweeps.ledger import Ledger, TrialState

    point = config["point"]
    trial = Ledger(settings.folder).known_as(tune.get_context().get_trial_id(), point["number"])
    trial.begin(point["sampled"])
    trial.record_steps_per_round(10)
    journal = Journal(trial.journal, 0)
    for index in range(1, settings.reports + 1):
        time.sleep(seconds / settings.reports)
        journal.append(10 * index - 5, {"task_loss": 1.0 / index, "tokens_per_second": 1e4})
        accuracy = random.Random(1000 * point["number"] + index).random()
        scores = {"accuracy": accuracy, "loss": 1.0 - accuracy}
        journal.append(10 * index, {f"validation_{name}": value for name, value in scores.items()})
        if index == settings.reports:
            trial.model.mkdir()
            (trial.model / "model.safetensors").write_bytes(b"weights")
            trial.end(TrialState.DONE)
        tune.report({"step": 10 * index, "round": index, **scores})


def sleeping_sweep(folder: Path, **settings: Any) -> Any:
    """The settings of a sweep over a tiny encoder and made-up texts, which are written to the folder."""
    from transformers import BertConfig

    from headway.config.sweep import SweepConfig
    from lib.random_encoders import random_texts, save_random_encoder

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    encoder = save_random_encoder(folder / "encoder", BertConfig(vocab_size=17_600, **shape))
    rows = [{"text": text, "label": TOPICS[n % 3]} for n, text in enumerate(random_texts(90, 0))]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {
        "model": str(encoder),
        "task": {"source": str(folder / "texts.jsonl"), "max_length": 16},
        "search": {"optimizer.learning_rate": "loguniform(1e-5, 1e-2)", "batch_size": [8, 16, 32]},
        "scheduler": "fifo",
        "test": False,
    }
    return SweepConfig.model_validate(base | settings)


@contextlib.contextmanager
def sleeping(seconds: float) -> Iterator[None]:
    """Within the block, trials sleep for so many seconds."""
    from ray import cloudpickle

    from headway.steps import sweep

    # Ray's processes cannot import this folder.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with mock.patch.object(sweep, "run_trial", partial(sleeping_trial, seconds=seconds)):
        yield
