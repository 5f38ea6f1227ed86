"""Compiled layers and checkpointed activations change what a step costs, and not what is learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from gpu_stand_in import random_batch
from tiny_encoders import CONFIGS
from tiny_training import same, train, weights

from headway.engine.model.compilation import checkpoint_activations, compile_model
from headway.engine.model.unpadded import run_unpadded
from headway.engine.training.objectives import PretrainingObjective

VOCABULARY = 61


def objective(kind: str, dropout: float = 0.0) -> PretrainingObjective:
    torch.manual_seed(0)
    settings = CONFIGS[kind].to_dict()
    settings |= {name: dropout for name in settings if "dropout" in name and name != "classifier_dropout"}
    config = type(CONFIGS[kind]).from_dict(settings)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    run_unpadded(model)
    return PretrainingObjective(model, None)


def learn(module: PretrainingObjective) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch, and its gradients."""
    torch.manual_seed(1)
    batch = random_batch([5, 17, 9, 12], VOCABULARY)
    torch.manual_seed(2)
    term = module.train()(batch)["mlm"]
    (term.total / term.predictions).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return float(term.total.detach()), gradients


class Calls:
    """Counts how often a layer is computed, and the bytes that are kept for backward."""

    def __init__(self, module: PretrainingObjective) -> None:
        self.layers = 0
        self.kept = 0
        layers = next(m for name, m in module.named_modules() if name.endswith((".layer", ".layers")))
        for layer in layers.children():
            first: Any = next(part for part in layer.modules() if isinstance(part, torch.nn.Linear))
            first.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.layers += 1

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.kept += tensor.numel() * tensor.element_size()
        return tensor


@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_are_computed_again_in_backward_and_keep_less_in_between(kind):
    """Dropout included, the gradients are the same bits."""
    found = {}
    for checkpointing in (False, True):
        module = objective(kind, dropout=0.1)
        if checkpointing:
            checkpoint_activations(module)
        calls = Calls(module)
        with torch.autograd.graph.saved_tensors_hooks(calls.pack, lambda tensor: tensor):
            loss, gradients = learn(module)
        found[checkpointing] = calls, loss, gradients
    plain, plain_loss, plain_gradients = found[False]
    checkpointed, loss, gradients = found[True]
    assert (plain.layers, checkpointed.layers) == (2, 4)
    assert checkpointed.kept < plain.kept
    assert loss == plain_loss
    assert same(gradients, plain_gradients)


def test_a_run_with_checkpointed_activations_is_bit_identical():
    settings = {"steps": 4, "evaluate_every": 4, "gradient_accumulation": 2}
    plain, history = train(None, **settings)
    checkpointed, others = train(None, activation_checkpointing=True, **settings)
    models = [trainer.objective.model for trainer in (plain, checkpointed)]
    assert [model.is_gradient_checkpointing for model in models] == [False, True]
    assert same(weights(plain), weights(checkpointed))
    assert history == others


@pytest.fixture
def graphs(monkeypatch):
    """Compiles to graphs that PyTorch's own kernels run; how many there are."""
    torch._dynamo.reset()
    made: list[int] = []

    def backend(graph: Any, examples: Any) -> Any:
        made.append(len(graph.graph.nodes))
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled(function, backend=backend, **how))
    yield made
    torch._dynamo.reset()


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_compiled_encoder_has_the_loss_and_the_gradients_of_a_plain_one(kind, by_layer, graphs):
    plain_loss, plain_gradients = learn(objective(kind))
    assert not graphs
    module = objective(kind)
    compile_model(module, by_layer=by_layer)
    loss, gradients = learn(module)
    assert graphs, "something was compiled"
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("how", [True, "trunk"])
def test_a_compiled_run_learns_what_a_plain_one_does(how, graphs):
    settings = {"steps": 4, "evaluate_every": 4, "log_every": 1, "dropout": 0.0}
    plain, history = train(None, compile=False, **settings)
    assert not graphs
    compiled, others = train(None, compile=how, **settings)
    assert graphs
    for (step, metrics), (other_step, found) in zip(history, others, strict=True):
        assert step == other_step
        assert found == pytest.approx(metrics, rel=1e-4)
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], weight, rtol=1e-3, atol=1e-5, msg=name)
