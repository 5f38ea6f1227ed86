"""What a training step asks of a GPU: nothing is read back, few operations, one graph that fits every batch.

On the meta device reading a number back raises an error, so a step that ends has read none.
"""

import random

import pytest
import torch
import transformers
from gpu_stand_in import META, Operations, allow_fused_optimizers, random_batch, step, trainer_on_meta
from tiny_encoders import CONFIGS
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from headway.engine.model import gpu_attention, short_attention, window_attention
from headway.engine.model.compilation import is_worth_compiling
from headway.engine.model.dropout import use_fast_dropout
from headway.engine.model.encoder import label_settings
from headway.engine.model.unpadded import run_unpadded
from headway.engine.training.contrastive import ContrastiveObjective
from headway.engine.training.objectives import ClassificationObjective, PretrainingObjective
from headway.engine.training.task_objectives import (
    AnswerObjective,
    CosineObjective,
    MultiLabelObjective,
    RegressionObjective,
    RerankingObjective,
    WordsObjective,
)

VOCABULARY = 61


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    allow_fused_optimizers(monkeypatch)
    monkeypatch.setattr(gpu_attention, "short_attention", short_attention)
    monkeypatch.setattr(gpu_attention, "window_attention", window_attention)


def model_of(kind, head="MaskedLM", **settings):
    torch.manual_seed(0)
    config = type(CONFIGS[kind]).from_dict(CONFIGS[kind].to_dict() | settings)
    return ready(getattr(transformers, f"AutoModelFor{head}").from_config(config))


def ready(model):
    use_fast_dropout(model)
    run_unpadded(model)
    return model


def some_batch(generator, limit=20, longest=23):
    lengths = [generator.randint(3, longest) for _ in range(generator.randint(2, limit))]
    return random_batch(lengths, VOCABULARY)


def test_reading_a_number_back_is_an_error_on_this_device():
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(torch.ones((), device=META))


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation": 2, "max_grad_norm": 0.1}, {"activation_checkpointing": True}]
)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pretraining_step_reads_nothing_back(kind, settings):
    trainer = trainer_on_meta(PretrainingObjective(model_of(kind), None), **settings)
    generator = random.Random(0)
    for number in range(2):
        step(trainer, number, [some_batch(generator) for _ in range(trainer.parts)])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_a_step_of_each_optimizer_that_skips_by_itself_reads_nothing_back(name, precision):
    settings = {"optimizer": {"name": name}, "gradient_accumulation": 2, "precision": precision}
    trainer = trainer_on_meta(PretrainingObjective(model_of("bert"), None), **settings)
    for number in range(2):
        step(trainer, number, [some_batch(random.Random(number)) for _ in range(trainer.parts)])


def test_a_step_with_sentence_pairs_and_dropout_in_attention_reads_nothing_back():
    config = type(CONFIGS["bert"]).from_dict(
        CONFIGS["bert"].to_dict() | {"attention_probs_dropout_prob": 0.1}
    )
    trainer = trainer_on_meta(PretrainingObjective(ready(transformers.BertForPreTraining(config)), "nsp"))
    step(trainer, 0, [some_batch(random.Random(0))])


LABELS = label_settings(["a", "b", "c"])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    ("head", "make", "labels"),
    [
        ("SequenceClassification", ClassificationObjective, torch.tensor([0, 2, 1, 1])),
        ("SequenceClassification", MultiLabelObjective, torch.ones(4, 3)),
        ("SequenceClassification", RegressionObjective, torch.ones(4)),
        ("SequenceClassification", RerankingObjective, torch.ones(4)),
        ("TokenClassification", WordsObjective, None),
        ("QuestionAnswering", AnswerObjective, torch.tensor([[0, 1]] * 4)),
    ],
)
def test_a_step_of_every_task_reads_nothing_back(kind, head, make, labels):
    settings = {} if head == "QuestionAnswering" else LABELS
    trainer = trainer_on_meta(make(model_of(kind, head, **settings)))
    step(trainer, 0, [random_batch([5, 9, 3, 12], VOCABULARY, labels)])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("make", [ContrastiveObjective, CosineObjective])
def test_a_step_of_an_embedder_reads_nothing_back(make, accumulation):
    model = ready(transformers.AutoModel.from_config(CONFIGS["bert"]))
    trainer = trainer_on_meta(make(model, group_size=2), gradient_accumulation=accumulation)
    step(trainer, 0, [random_batch([5, 9, 3, 12], VOCABULARY, torch.ones(4))] * accumulation)


def test_a_step_with_sequences_too_long_for_one_tile_reads_nothing_back():
    trainer = trainer_on_meta(PretrainingObjective(model_of("modernbert"), None))
    with Operations() as seen:
        step(trainer, 0, [random_batch([200, 9, 300], VOCABULARY)])
    assert seen.counts["headway.attend_window.default"] == 1  # of two layers, one sees a window
    assert seen.counts["torch_attn._varlen_attn.default"] == 1


def test_a_step_of_bert_base_is_at_most_1500_operations():
    model = ready(transformers.BertForMaskedLM(transformers.BertConfig()))
    trainer = trainer_on_meta(PretrainingObjective(model, None))
    batch = random_batch([80, 30, 128, 5], 30_522)
    step(trainer, 0, [batch])
    with Operations() as seen:
        step(trainer, 1, [batch])
    assert seen.counts.total() <= 1500, seen.counts.most_common(20)


@pytest.fixture
def compiler(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled(function, backend=backend, **how))
    return backend


@pytest.mark.parametrize("kind", CONFIGS)
def test_trunk_and_head_are_one_graph_each_for_batches_of_any_length(kind, compiler):
    trainer = trainer_on_meta(PretrainingObjective(model_of(kind), None), compile="trunk")
    generator = random.Random(0)
    for number in range(200 if kind in ("bert", "modernbert") else 30):
        step(trainer, number, [some_batch(generator)])
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2
    assert compiler.frame_count <= 2 * 3  # each is compiled forward and backward


def test_all_layers_of_a_kind_share_one_graph(compiler):
    trainer = trainer_on_meta(PretrainingObjective(model_of("bert"), None), compile=True)
    generator = random.Random(0)
    for number in range(20):
        step(trainer, number, [some_batch(generator)])
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 3  # a layer that begins, one that follows, and the head


def test_only_long_runs_on_a_gpu_are_compiled_unless_asked_for():
    assert is_worth_compiling(META, 300)
    assert not is_worth_compiling(META, 299)
    assert not is_worth_compiling(torch.device("cpu"), 10_000)


@pytest.mark.parametrize(("how", "graphs"), [("trunk", 2), (True, 3)])
def test_graphs_fit_long_sequences_and_windows_of_any_length(how, graphs, compiler):
    trainer = trainer_on_meta(PretrainingObjective(model_of("modernbert"), None), compile=how)
    generator = random.Random(0)
    for number in range(20):
        batch = some_batch(generator, longest=500)
        assert batch.longest > short_attention.LONGEST
        step(trainer, number, [batch])
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs
