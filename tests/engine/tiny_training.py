"""A tiny encoder that learns labels in a moment, alone or in groups of processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
)

from headway.config.finetune import LoraConfig
from headway.config.training import TrainingConfig
from headway.data.batches import Example, LabelledBatches
from headway.data.sampling import Draw
from headway.data.task_batches import GroupBatches
from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.state_dict import whole_weights
from headway.engine.checkpoint.storage import Folder
from headway.engine.model.lora import add_lora, freeze_layers
from headway.engine.model.unpadded import run_unpadded
from headway.engine.parallel.worker import Worker
from headway.engine.training.contrastive import ContrastiveObjective, ContrastivePretraining
from headway.engine.training.evaluation import mean_losses
from headway.engine.training.hooks import StepInfo
from headway.engine.training.objectives import ClassificationObjective, PretrainingObjective
from headway.engine.training.scoring import predict
from headway.engine.training.trainer import Metrics, Stopped, Trainer

TIMINGS = {"tokens_per_second", "utilisation", "peak_memory_gib", "startup_seconds"}

GROUP_LAYOUTS: dict[str, dict[str, Any]] = {
    "one worker": {"world": 1},
    "one worker, two micro-batches": {"world": 1, "gradient_accumulation": 2},
    "two workers": {"world": 2, "workers": 2},
    "two workers, two micro-batches each": {"world": 2, "workers": 2, "gradient_accumulation": 2},
    "two of three workers": {"world": 2, "workers": [1, 3]},
    "weights sharded": {"world": 2, "workers": 2, "parallel": {"shard": 2}, "gradient_accumulation": 2},
    "layers apart": {"world": 2, "workers": 2, "parallel": {"pipeline": 2}, "gradient_accumulation": 2},
}
"""Ways to share out a run of `train` over processes and micro-batches, as arguments of a phase."""

torch.set_num_threads(1)  # a tiny matrix is not worth a second thread, least of all on a busy machine


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def tiny_config(**settings: Any) -> TrainingConfig:
    defaults = {"steps": 12, "batch_size": 12, "log_every": 3, "evaluate_every": 4, "checkpoint_every": 4}
    return TrainingConfig(**(defaults | {"precision": "fp32"} | settings))


def tiny_bert(dropout: float, num_labels: int) -> BertConfig:
    return BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        num_labels=num_labels,
    )


def tiny_objective(dropout: float = 0.1) -> ClassificationObjective:
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_bert(dropout, 3))
    run_unpadded(model)
    return ClassificationObjective(model)


def tiny_pretraining_objective(dropout: float = 0.1) -> PretrainingObjective:
    """Its head for words shares its weights with the embeddings."""
    torch.manual_seed(0)
    model = BertForPreTraining(tiny_bert(dropout, 2))
    run_unpadded(model)
    return PretrainingObjective(model, "nsp")


def masked(example: Example) -> Example:
    """A text whose first two words are to be guessed."""
    positions = np.asarray([1, 2])
    words = example.input_ids.copy()
    words[positions] = 4
    return replace(
        example, input_ids=words, masked_positions=positions, masked_labels=example.input_ids[positions]
    )


class MaskedBatches(LabelledBatches):
    """The first two words of every text are to be guessed."""

    def sequence(self, draw: Draw) -> Example:
        example = masked(super().sequence(draw))
        return replace(example, label=example.label % 2)


class MaskedGroups(GroupBatches):
    """The first two words of every text are to be guessed, and which texts belong together."""

    def sequences(self, draw: Draw) -> list[Example]:
        return [masked(example) for example in super().sequences(draw)]


def tiny_contrastive_pretraining(dropout: float = 0.1) -> ContrastivePretraining:
    torch.manual_seed(0)
    model = BertForMaskedLM(tiny_bert(dropout, 2))
    run_unpadded(model)
    return ContrastivePretraining(model)


def tiny_contrastive_objective(dropout: float = 0.1) -> ContrastiveObjective:
    torch.manual_seed(0)
    model = BertModel(tiny_bert(dropout, 2), add_pooling_layer=False)
    run_unpadded(model)
    return ContrastiveObjective(model, group_size=3)


def tiny_groups(
    rows: int = 40, seed: int = 0, batch_size: int = 12, pretraining: bool = False
) -> GroupBatches:
    """Anchors, each with a text that shares most of its words and one that shares none on purpose.

    With `pretraining` there are only the first two of each, and some of their words are to be guessed.
    """
    rng = np.random.default_rng(6)
    groups = []
    for _ in range(rows):
        anchor = rng.integers(3, 64, rng.integers(4, 20)).astype(np.int32)
        other = rng.integers(3, 64, rng.integers(4, 20)).astype(np.int32)
        groups.append([anchor, rng.permutation(anchor)[2:], other][: 2 if pretraining else 3])
    scores = np.zeros(rows, np.float32)
    kind = MaskedGroups if pretraining else GroupBatches
    return kind(groups, scores, tiny_tokenizer(), max_length=24, batch_size=batch_size, seed=seed)


def tiny_tokenizer() -> BertTokenizerFast:
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(specials)})


def tiny_batches(
    rows: int = 40, seed: int = 0, batch_size: int = 12, pretraining: bool = False
) -> LabelledBatches:
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, 64, rng.integers(4, 20)).astype(np.int32) for _ in range(rows)]
    labels = np.asarray([int(text[0]) % 3 for text in texts])
    kind = MaskedBatches if pretraining else LabelledBatches
    return kind(texts, labels, tiny_tokenizer(), max_length=24, batch_size=batch_size, seed=seed)


def train(
    states: str | Path | Checkpoints | None,
    *,
    worker: Worker | None = None,
    stop_after: int | None = None,
    dropout: float = 0.1,
    pretraining: bool = False,
    contrastive: bool = False,
    scored: bool = False,
    frozen_layers: int = 0,
    lora: bool = False,
    validation_rows: int = 25,
    **settings: Any,
) -> tuple[Trainer, list[tuple[int, Metrics]]]:
    """Train, or go on; returns the trainer and what was reported, without timings.

    With `pretraining` words and pairs are learnt, with `contrastive` which texts belong together, with both
    words and which texts belong together, else classes. With `scored` the validation rows are also measured
    the way fine-tuning does it. With `frozen_layers` or `lora` a part of the weights is trained.
    """
    config = tiny_config(**settings)
    worker = (worker or Worker()).arranged(config.parallel)
    checkpoints = states if isinstance(states, Checkpoints) else None
    if states is not None and checkpoints is None:
        checkpoints = Checkpoints(Folder(states), worker, keep=config.keep_checkpoints)  # type: ignore[arg-type]
    history: list[tuple[int, Metrics]] = []

    def report(info: StepInfo) -> None:
        if info.metrics:
            kept = {name: value for name, value in info.metrics.items() if name not in TIMINGS}
            history.append((info.step, kept))

    def stop(info: StepInfo) -> None:
        info.stop = stop_after is not None and info.step >= stop_after

    # By default so many that one of two workers has a batch more than the other.
    make_batches: Any = partial(tiny_groups if contrastive else tiny_batches, pretraining=pretraining)
    validation = make_batches(rows=validation_rows, batch_size=config.batch_size)

    def evaluator(module: Any) -> Metrics:
        losses = (
            {}
            if contrastive and not pretraining
            else mean_losses(module, validation, worker, config.batch_size)
        )
        if not scored:
            return losses
        actual = predict(module, validation, worker, batch_size=config.batch_size, precision=config.precision)
        return losses | {"validation_scored": actual.loss}

    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): tiny_objective,
        (False, True): tiny_contrastive_objective,
        (True, False): tiny_pretraining_objective,
        (True, True): tiny_contrastive_pretraining,
    }
    objective = kinds[pretraining, contrastive](dropout)
    freeze_layers(objective.model, frozen_layers)
    if lora:
        torch.manual_seed(1)
        add_lora(objective.model, LoraConfig(rank=4, dropout=0.0))
    trainer = Trainer(
        objective,
        make_batches(batch_size=config.batch_size),
        config,
        worker=worker,
        checkpoints=checkpoints,
    )
    trainer.add_evaluation(evaluator)
    trainer.add_hook(report)
    trainer.add_hook(stop)
    with contextlib.suppress(Stopped):
        trainer.run()
    return trainer, history


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All weights, whole; every worker calls it."""
    return {name: value.clone() for name, value in whole_weights(trainer.objective, trainer.worker).items()}


def share_held(trainer: Trainer) -> float:
    """Which part of all weights lies on this worker."""
    parameters = trainer.objective.parameters()
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return held / sum(p.numel() for p in tiny_objective().parameters())


def run_phases(phases: list[dict[str, Any]], folder: Path, rank: int) -> None:
    """Train phase after phase in groups of different sizes; for each, `<name>.pt` holds what came of it.

    Args:
        phases: each with its `name`, its `world`, and arguments of `train`.
        folder: for results, and where the processes meet.
        rank: of this process; it sits out phases of smaller groups.
    """
    for phase in phases:
        name, world = phase.pop("name"), phase.pop("world")
        if rank < world:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/{name}.meet", rank=rank, world_size=world
            )
            worker = Worker(rank, world, torch.device("cpu"))
            trainer, history = train(phase.pop("states", None), worker=worker, **phase)
            trained = weights(trainer)
            if rank == 0:
                torch.save(
                    {
                        "start": trainer.start_step,
                        "history": history,
                        "weights": trained,
                        "held": share_held(trainer),
                    },
                    folder / f"{name}.pt",
                )
            dist.barrier()
            dist.destroy_process_group()
        while not (folder / f"{name}.pt").exists():
            time.sleep(0.05)


def train_in_processes(phases: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """Results of `run_phases` by name, from as many processes as the largest group needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch and transformers are loaded once, and not by each
    processes = [
        context.Process(target=run_phases, args=(phases, folder, rank), daemon=True)
        for rank in range(max(phase["world"] for phase in phases))
    ]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes):
            assert not any(process.exitcode for process in processes), "a process of the group failed"
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
    return {phase["name"]: torch.load(folder / f"{phase['name']}.pt") for phase in phases}
