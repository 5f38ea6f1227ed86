"""The unpadded forward against transformers' own padded one: every kind of encoder, every head."""

import pytest
import torch
import transformers
from tiny_encoders import CONFIGS, LENGTHS, MODELS, build, random_batch

from headway.config.base import ConfigError
from headway.engine.model import heads
from headway.engine.model.layout import layout_of_lengths
from headway.engine.model.unpadded import check_supported, encode_unpadded, run_unpadded


def padded_logits(model, kind, head, padded, types, mask):
    arguments = {"input_ids": padded, "attention_mask": mask.long()}
    if kind in ("bert", "electra"):
        arguments["token_type_ids"] = types
    output = model(**arguments)
    if head == "QuestionAnswering":
        return torch.stack([output.start_logits, output.end_logits], -1)[mask]
    return output.logits if head == "SequenceClassification" else output.logits[mask]


@pytest.mark.parametrize("head", MODELS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_unpadded_outputs_and_gradients_equal_transformers_padded_ones(kind, head):
    model = build(kind, head)
    ids, types, padded, padded_types, mask = random_batch(kind)
    model.set_attn_implementation("sdpa")
    expected = padded_logits(model, kind, head, padded, padded_types, mask)
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
    wanted = torch.autograd.grad((expected * direction).sum(), parameters, allow_unused=True)

    run_unpadded(model)
    layout = layout_of_lengths(torch.tensor(LENGTHS))
    hidden = encode_unpadded(model.base_model, ids, types, layout)
    actual = MODELS[head](model, hidden, layout)
    gradients = torch.autograd.grad((actual * direction).sum(), parameters, allow_unused=True)

    # ModernBERT turns queries and keys in float32, whatever the weights are.
    tolerance = 1e-5 if kind == "modernbert" else 1e-9
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    for name, one, other in zip(names, gradients, wanted, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", CONFIGS)
def test_bf16_outputs_stay_within_rounding(kind):
    model = build(kind, "SequenceClassification").float()
    ids, types, padded, padded_types, mask = random_batch(kind)
    expected = padded_logits(model, kind, "SequenceClassification", padded, padded_types, mask)
    run_unpadded(model)
    layout = layout_of_lengths(torch.tensor(LENGTHS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = encode_unpadded(model.base_model, ids, types, layout)
        actual = heads.sequence_logits(model, hidden, layout)
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.03)


def test_next_sentence_head_equals_transformers():
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(CONFIGS["bert"]).double().eval()
    ids, types, padded, padded_types, mask = random_batch("bert")
    expected = model(padded, attention_mask=mask.long(), token_type_ids=padded_types).seq_relationship_logits
    run_unpadded(model)
    layout = layout_of_lengths(torch.tensor(LENGTHS))
    hidden = encode_unpadded(model.base_model, ids, types, layout)
    actual = heads.next_sentence_logits(model, hidden, layout)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_mean_pooling_is_the_mean_of_each_sequence():
    layout = layout_of_lengths(torch.tensor(LENGTHS))
    hidden = torch.randn(sum(LENGTHS), 8, dtype=torch.float64)
    expected = torch.stack([part.mean(0) for part in hidden.split(LENGTHS)])
    torch.testing.assert_close(heads.mean_pooled(hidden, layout), expected)


def test_unsupported_kind_is_named_in_one_line():
    with pytest.raises(ConfigError, match=r"'gpt2' encoders cannot run unpadded; supported: bert, "):
        check_supported(transformers.GPT2Config())
