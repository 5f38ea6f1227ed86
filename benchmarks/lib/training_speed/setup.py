"""What every contestant is given: the text, the shape, the masking."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from headway.config.pretrain import MaskingConfig
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.sampling import BatchSizes
from headway.engine.model.encoder import config_for, new_pretraining_model
from headway.engine.training.flops import TrainingFlops
from headway.engine.training.objectives import PretrainingObjective
from lib.paragraphs import Paragraphs
from lib.training_speed.sizes import Size

LEARNING_RATE = 1e-4
_FLOPS_SEQUENCES = 512


class Setup(NamedTuple):
    """The same for every contestant that trains a model.

    Attributes:
        size: the model and its batches.
        paragraphs: what it is trained on.
        device: where.
        sequences: in a step.
        peer_loaders: processes that make a peer's batches.
        compile: on a GPU, what Headway compiles as one graph: each of the layers, or the trunk.
    """

    size: Size
    paragraphs: Paragraphs
    device: torch.device
    sequences: int
    peer_loaders: int
    compile: str = "trunk"


def new_model(size: Size, paragraphs: Paragraphs, device: torch.device, *, ours: bool) -> PreTrainedModel:
    """A model with random weights, as Headway runs it or as transformers gives it."""
    config = config_for(size.model, paragraphs.tokenizer, size.max_length)
    # Made on the device: drawing the weights of a large model on a CPU takes seconds.
    with device:
        if ours:
            return new_pretraining_model(config, next_sentence=False, seed=0)
        torch.manual_seed(0)
        return AutoModelForMaskedLM.from_config(config)


def headway_batches(paragraphs: Paragraphs, sequences: int, masking: float = 0.15) -> PretrainingBatches:
    """Masked rows as Headway makes them."""
    return PretrainingBatches(
        paragraphs.store,
        paragraphs.tokenizer,
        max_length=paragraphs.max_length,
        masking=MaskingConfig(rate=masking),
        pairs=None,
        batch_sizes=BatchSizes(sequences),
        seed=0,
    )


def useful_flops_per_token(size: Size, paragraphs: Paragraphs) -> float:
    """Of the rows as they are; the same measure for every contestant."""
    model = new_model(size, paragraphs, torch.device("meta"), ours=True)
    sequences = min(_FLOPS_SEQUENCES, paragraphs.store.num_documents)
    [batch] = headway_batches(paragraphs, sequences, size.masking).micro_batches(0, 0, 1, 1)
    return TrainingFlops.of(PretrainingObjective(model, pairs=None)).of_batch(batch) / len(batch.input_ids)
