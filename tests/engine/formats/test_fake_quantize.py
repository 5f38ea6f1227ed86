"""Training with rounded numbers: what it computes, what it learns by, and what the packed model gives."""

import shutil

import pytest
import torch
import transformers
from torch import nn

import headway
from encoder_folders import save_encoder
from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.engine.formats.fake_quantize import round_in_training, rounded_inputs, straight_through
from headway.engine.formats.packed import pack, pack_folder
from headway.engine.formats.static import StaticEmbeddingConfig, StaticEmbeddingModel
from headway.engine.model.encoder import load_as_saved
from headway.engine.model.unpadded import encoder_layers
from headway.engine.parallel.worker import Worker
from headway.runs.finetuning import score, task_folder
from headway.runs.held_out import finetune_settings
from headway.runs.teaching import fine_tuned
from headway.tasks.task import open_task


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_rounded_forward_and_not_backward(bits):
    weight = torch.randn(40, 64, requires_grad=True)
    rounded = straight_through(weight, bits)
    torch.testing.assert_close(rounded, pack(weight, bits).unpacked(torch.float32))
    factors = torch.randn(40, 64)
    (rounded * factors).sum().backward()
    torch.testing.assert_close(weight.grad, factors)


def test_inputs_lie_on_256_steps_with_zero_among_them():
    inputs = torch.cat([torch.linspace(-1.0, 3.0, 1000), torch.zeros(1)]).requires_grad_()
    rounded = rounded_inputs(inputs)
    assert len(rounded.unique()) <= 256
    assert rounded[-1] == 0.0
    assert (rounded - inputs).abs().max() <= 4.0 / 255  # half a step, and the zero's own rounding
    rounded.sum().backward()
    assert inputs.grad is not None and inputs.grad.mean() > 0.99


def test_eight_bits_change_the_layers_and_four_bits_all_that_is_packed(tmp_path):
    folder = save_encoder(tmp_path, "bert", "classify")
    names = list(load_as_saved(folder).state_dict())
    changed = {}
    for kind in ("int8", "int4"):
        model = load_as_saved(folder)
        round_in_training(model, encoder_layers(model), kind)
        assert list(model.state_dict()) == names
        plain = (nn.Linear, nn.Embedding)
        modules = dict(model.named_modules())
        changed[kind] = {
            name for name, part in modules.items() if isinstance(part, plain) and type(part) not in plain
        }
    assert len(changed["int8"]) == 12
    others = {"bert.embeddings.word_embeddings", "bert.embeddings.position_embeddings", "bert.pooler.dense"}
    assert changed["int4"] == changed["int8"] | others


def test_a_model_without_matrices_to_round_is_refused():
    model = StaticEmbeddingModel(StaticEmbeddingConfig(vocab_size=40, hidden_size=32))
    with pytest.raises(ConfigError, match="quantize_aware: 'int8' rounds nothing in this model"):
        round_in_training(model, encoder_layers(model), "int8")


def test_lora_is_refused():
    with pytest.raises(ValueError, match="quantize_aware does not go with lora"):
        FinetuneConfig.model_validate({"model": "m", "task": "t", "quantize_aware": "int8", "lora": {}})


def test_scores_in_training_are_those_of_the_packed_model(
    classifier, labelled_file, runs, make_context, tmp_path
):
    task = {"kind": "classification", "source": str(labelled_file), "max_length": 48}
    common = {"epochs": 4, "batch_size": 16, "learning_rate": 1e-3, "runs": runs, "quiet": True}
    aware = headway.finetune(model=classifier, task=task, quantize_aware="int4", precision="fp32", **common)
    packed = tmp_path / "packed"
    shutil.copytree(aware.path, packed)
    pack_folder(packed, 4)
    # What is saved are plain floats.
    transformers.AutoModelForSequenceClassification.from_pretrained(aware.path)

    config = FinetuneConfig.model_validate({"model": str(classifier), "task": task})
    opened = open_task(task_folder(config.task, classifier, make_context("task", runs)))
    settings = finetune_settings(packed, opened, {"precision": "fp32"})
    rows = opened.split("validation")
    batches = opened.batches(rows, opened.tokenizer_of(packed), batch_size=16)
    scores = score(fine_tuned(packed, opened, settings), opened, rows, batches, Worker(), settings)
    assert scores["loss"] == pytest.approx(aware.validation_loss, abs=1e-4)
