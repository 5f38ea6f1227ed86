"""Losses over unpadded batches equal those that transformers computes over padded ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    PreTrainedConfig,
)

from encoder_folders import load_classifier
from headway.config.pretrain import ModelConfig
from headway.data.batches import Batch
from headway.engine.model.encoder import bert_config, new_pretraining_model, save_model
from headway.engine.training.objectives import ClassificationObjective, PretrainingObjective

LENGTHS = [7, 12, 4, 9]
VOCABULARY = 60


@pytest.fixture(scope="module")
def config():
    shape = ModelConfig(preset="bert-tiny", hidden_size=32, num_attention_heads=2, dropout=0.0)
    return bert_config(shape, VOCABULARY, max_length=16, pad_token_id=0)


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    positions = torch.randperm(tokens, generator=generator)[:9].sort().values
    return Batch.of(
        input_ids=torch.randint(5, VOCABULARY, (tokens,), generator=generator),
        token_type_ids=torch.cat([(torch.arange(n) >= n // 2).long() for n in LENGTHS]),
        lengths=torch.tensor(LENGTHS),
        labels=torch.tensor([0, 1, 1, 0]),
        masked_positions=positions,
        masked_labels=torch.randint(5, VOCABULARY, (9,), generator=generator),
        row_ids=torch.arange(4),
    )


def plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same shape with transformers' own attention; a configuration is shared with its models."""
    own = copy.deepcopy(config)
    own._attn_implementation = "eager"
    return own


def padded(batch: Batch) -> dict[str, Tensor]:
    """The batch as transformers takes it, with -100 for tokens that are not hidden."""
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.masked_positions] = batch.masked_labels

    def pad(row: Tensor, value: int = 0) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(row.split(LENGTHS), batch_first=True, padding_value=value)

    return {
        "input_ids": pad(batch.input_ids),
        "token_type_ids": pad(batch.token_type_ids),
        "attention_mask": pad(torch.ones_like(batch.input_ids)),
        "labels": pad(labels, -100),
    }


def mean(term) -> Tensor:
    return term.total / term.predictions


def same_gradients(model, reference) -> None:
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("pairs", ["nsp", "sop"])
def test_pretraining_losses_equal_transformers_forward_and_backward(pairs, config, batch):
    """The order of sentences is a label of two classes, as whether one follows the other is."""
    model = new_pretraining_model(config, next_sentence=True, seed=1).double()
    reference = BertForPreTraining(plain(config)).double()
    reference.load_state_dict(model.state_dict())
    terms = PretrainingObjective(model, pairs=pairs)(batch)
    assert list(terms) == ["mlm", pairs]
    expected = reference(**padded(batch), next_sentence_label=batch.labels)
    total = mean(terms["mlm"]) + mean(terms[pairs])
    torch.testing.assert_close(total.double(), expected.loss, rtol=1e-6, atol=1e-7)
    total.backward()
    expected.loss.backward()
    same_gradients(model, reference)


def test_masked_language_modelling_alone_equals_transformers(config, batch):
    model = new_pretraining_model(config, next_sentence=False, seed=1).double()
    reference = BertForMaskedLM(plain(config)).double()
    reference.load_state_dict(model.state_dict())
    terms = PretrainingObjective(model, pairs=None)(batch)
    assert set(terms) == {"mlm"}
    expected = reference(**padded(batch)).loss
    torch.testing.assert_close(mean(terms["mlm"]).double(), expected, rtol=1e-6, atol=1e-7)


def test_classification_loss_and_logits_equal_transformers(config, batch, tmp_path):
    save_model(new_pretraining_model(config, next_sentence=True, seed=1), tmp_path)
    model = load_classifier(tmp_path, ["a", "b", "c"], random_weights=False, seed=2).double().eval()
    reference = BertForSequenceClassification(plain(model.config)).double().eval()
    reference.load_state_dict(model.state_dict())
    objective = ClassificationObjective(model)
    inputs = padded(batch) | {"labels": batch.labels}
    expected = reference(**inputs)
    torch.testing.assert_close(objective.logits(batch), expected.logits, rtol=1e-9, atol=1e-10)
    loss = mean(objective(batch)["classification"])
    torch.testing.assert_close(loss.double(), expected.loss, rtol=1e-6, atol=1e-7)
    loss.backward()
    expected.loss.backward()
    same_gradients(model, reference)


def test_right_predictions_are_counted_outside_training(config, batch):
    model = new_pretraining_model(config, next_sentence=True, seed=1).eval()
    reference = BertForPreTraining(plain(config)).eval()
    reference.load_state_dict(model.state_dict())
    with torch.inference_mode():
        terms = PretrainingObjective(model, pairs="nsp")(batch)
        expected = reference(**padded(batch))
    labels = padded(batch)["labels"]
    hidden = labels != -100
    right = (expected.prediction_logits.argmax(-1)[hidden] == labels[hidden]).sum()
    assert int(terms["mlm"].correct) == int(right)
    assert int(terms["mlm"].predictions) == 9
    nsp = (expected.seq_relationship_logits.argmax(-1) == batch.labels).sum()
    assert (int(terms["nsp"].correct), int(terms["nsp"].predictions)) == (int(nsp), 4)


def test_sums_over_parts_of_a_batch_are_those_of_the_whole(config, batch):
    """What makes means over workers and micro-batches exact."""
    objective = PretrainingObjective(new_pretraining_model(config, True, seed=1).double(), "nsp")
    whole = objective(batch)
    cut = sum(LENGTHS[:2])
    first, second = batch.masked_positions < cut, batch.masked_positions >= cut
    parts = [
        Batch.of(
            input_ids=batch.input_ids[:cut],
            token_type_ids=batch.token_type_ids[:cut],
            lengths=batch.lengths[:2],
            labels=batch.labels[:2],
            masked_positions=batch.masked_positions[first],
            masked_labels=batch.masked_labels[first],
            row_ids=batch.row_ids[:2],
        ),
        Batch.of(
            input_ids=batch.input_ids[cut:],
            token_type_ids=batch.token_type_ids[cut:],
            lengths=batch.lengths[2:],
            labels=batch.labels[2:],
            masked_positions=batch.masked_positions[second] - cut,
            masked_labels=batch.masked_labels[second],
            row_ids=batch.row_ids[2:],
        ),
    ]
    for name in ("mlm", "nsp"):
        total = sum(objective(part)[name].total for part in parts)
        torch.testing.assert_close(total, whole[name].total, rtol=1e-5, atol=1e-5)
