"""A model cut into stages computes, one stage after the other, what the whole model computes."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_encoders import CONFIGS, LENGTHS, MODELS, build, random_batch

from headway.config.base import ConfigError
from headway.engine.model.layout import layout_of_lengths
from headway.engine.model.unpadded import encode_unpadded, run_unpadded
from headway.engine.parallel.stages import keep_stage, names_on_both_ends


def cut(whole, stages: int):
    parts = [copy.deepcopy(whole) for _ in range(stages)]
    for number, part in enumerate(parts):
        keep_stage(part, number, stages)
    return parts


@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_stages_give_the_outputs_and_gradients_of_the_whole_model(kind: str, head: str) -> None:
    whole = build(kind, head)
    run_unpadded(whole)
    first, last = cut(whole, 2)
    ids, types, *_ = random_batch(kind)
    layout = layout_of_lengths(torch.tensor(LENGTHS))
    last.base_model.embeddings.states = encode_unpadded(first.base_model, ids, types, layout)
    outputs = MODELS[head](last, encode_unpadded(last.base_model, ids, types, layout), layout)
    expected = MODELS[head](whole, encode_unpadded(whole.base_model, ids, types, layout), layout)
    assert torch.equal(outputs, expected)

    for logits in (outputs, expected):
        logits.square().sum().backward()
    gradients: dict[str, torch.Tensor] = {}
    for part in (first, last):
        for name, parameter in part.named_parameters():
            if parameter.grad is not None:
                gradients[name] = gradients.get(name, 0.0) + parameter.grad
    wanted = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient)


@pytest.mark.parametrize(("head", "shared"), [("MaskedLM", 1), ("SequenceClassification", 0)])
@pytest.mark.parametrize("kind", CONFIGS)
def test_each_weight_lies_on_one_stage_and_shared_ones_on_both_ends(
    kind: str, head: str, shared: int
) -> None:
    whole = build(kind, head)
    first, last = ({name for name, _ in part.named_parameters()} for part in cut(whole, 2))
    assert first | last == {name for name, _ in whole.named_parameters()}
    assert first & last == set(names_on_both_ends(whole))
    assert len(first & last) == shared


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 stages need as many layers; there are 2"):
        keep_stage(build("bert", "MaskedLM"), 0, 3)
