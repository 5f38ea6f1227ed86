"""Useful FLOPs against PyTorch's own count of what runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from headway.data.batches import Batch
from headway.engine.training.flops import TrainingFlops
from headway.engine.training.objectives import PretrainingObjective


def test_count_is_that_of_one_full_sequence_of_the_padded_model():
    """With every token real and scored, nothing is left out, so both counts agree."""
    length = 24
    config = BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    config.max_position_embeddings = 32
    config._attn_implementation = "eager"
    model = BertForMaskedLM(config)
    ids = torch.randint(97, (1, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    positions = torch.arange(length)
    batch = Batch.of(
        input_ids=ids[0],
        token_type_ids=torch.zeros(length, dtype=torch.long),
        lengths=torch.tensor([length]),
        labels=torch.zeros(1, dtype=torch.long),
        masked_positions=positions,
        masked_labels=ids[0],
        row_ids=torch.zeros(1, dtype=torch.long),
    )
    actual = TrainingFlops.of(PretrainingObjective(model, pairs=None)).of_batch(batch)
    assert actual == pytest.approx(counter.get_total_flops(), rel=1e-6)
