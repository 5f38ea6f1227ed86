"""What is measured of the original before any candidate is made: its scores, and which layers it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from headway.compress.importance import dropping_order
from headway.compress.judge import Judge
from headway.compress.search.measuring import served_scores
from headway.tasks.task import open_task


def study_original(
    folder: Path, task_folder: Path, rows: int, seed: int, orders_layers: bool, threads: int | None = None
) -> dict[str, Any]:
    """The original's scores on the validation rows in fp32, and the order in which its layers are dropped.

    Args:
        folder: of the model.
        task_folder: of the task, prepared with its tokenizer.
        rows: of training, on which the loss without a layer is measured.
        seed: of the choice of these rows.
        orders_layers: whether layers are dropped at all.
        threads: to compute with; if None, as many as PyTorch takes.

    Returns:
        `scores` by name; `layer_order`, empty if no layer is dropped.

    Raises:
        ConfigError: the model was not fine-tuned on the task.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    task = open_task(task_folder)
    judge = Judge.of(task, folder)
    objective = judge.objective(folder)
    order = dropping_order(objective, judge.sample(rows, seed)) if orders_layers else []
    return {"scores": served_scores(folder, "fp32", task, "validation"), "layer_order": order}


def score_served(
    models: list[tuple[Path, str]], task_folders: list[Path], threads: int | None = None
) -> list[dict[str, float]]:
    """Scores on the held-out rows of models in the precisions that they are served in.

    Args:
        models: folder and precision of each.
        task_folders: of the task, prepared with each one's tokenizer.
        threads: as above.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return [
        served_scores(folder, precision, open_task(task), "test")  # type: ignore[arg-type]
        for (folder, precision), task in zip(models, task_folders, strict=True)
    ]
