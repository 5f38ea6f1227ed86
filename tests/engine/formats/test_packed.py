"""Weights in 8 and 4 bits, against the same rounded one number at a time, and transformers on them."""

import shutil

import numpy as np
import pytest
import torch
import transformers

from encoder_folders import random_pack, save_encoder
from headway.compress.quantize import calibrate
from headway.config.base import ConfigError
from headway.data.atomic import link_or_copy
from headway.engine.formats.packed import FILE, is_packed, pack, pack_folder, packed_bits, unpacked_folder
from headway.engine.inference.int8 import write_roundings
from headway.engine.model.encoder import load_as_saved, load_model
from headway.inference.description import describe
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation

LENGTHS = [5, 23, 3, 12, 23, 8]


def rounded(weight: np.ndarray, bits: int) -> np.ndarray:
    """Row by row, group by group."""
    result = np.empty_like(weight)
    width = weight.shape[1] if bits == 8 else 32
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], width):
            part = weight[row, start : start + width]
            scale = np.float32(np.float16(max(np.abs(part).max() / (127 if bits == 8 else 7), 1e-6)))
            result[row, start : start + width] = np.rint(part / scale) * scale
    return result


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("columns", [64, 45, 1])
def test_a_packed_matrix_is_the_rounded_one(bits, columns):
    weight = torch.randn(40, columns, generator=torch.Generator().manual_seed(1))
    packed = pack(weight, bits)
    expected = rounded(weight.numpy(), bits)
    np.testing.assert_allclose(packed.unpacked(torch.float32).numpy(), expected, atol=1e-6)
    index = torch.tensor([7, 0, 7])
    np.testing.assert_array_equal(
        packed.rows(index).unpacked(torch.float32), packed.unpacked(torch.float32)[index]
    )
    # Packed again, nothing changes.
    again = pack(packed.unpacked(torch.float32), bits)
    assert torch.equal(again.codes, packed.codes) and torch.equal(again.scales, packed.scales)


def test_four_bits_take_an_eighth_of_float32_and_the_scales():
    packed = pack(torch.randn(256, 256), 4)
    assert packed.codes.nbytes == 256 * 256 // 2
    assert packed.scales.nbytes == 256 * 8 * 2


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_of_zeros_stays_zeros(bits):
    assert not pack(torch.zeros(3, 40), bits).unpacked(torch.float32).any()


@pytest.fixture(params=["bert", "distilbert", "modernbert"])
def kind(request):
    return request.param


@pytest.fixture
def folders(kind, tmp_path):
    """A classifier's folder, and one that shares its files until its weights are packed in 4 bits."""
    original = save_encoder(tmp_path / "original", kind, "classify")
    packed = tmp_path / "packed"
    shutil.copytree(original, packed, copy_function=link_or_copy)
    pack_folder(packed, 4)
    return original, packed


def reference(original, kind):
    """transformers' model with every matrix rounded that has 32 rows and columns."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(original).eval()
    for weight in model.parameters():
        if weight.dim() == 2 and min(weight.shape) >= 32:
            weight.data = torch.from_numpy(rounded(weight.detach().numpy(), 4))
    return model


def test_only_the_packed_file_is_left_and_the_original_is_untouched(folders):
    original, packed = folders
    assert [path.name for path in packed.glob("*.safetensors")] == [FILE]
    assert is_packed(packed) and packed_bits(packed) == 4 and not is_packed(original)
    sizes = [next(folder.glob("*.safetensors")).stat().st_size for folder in folders]
    assert sizes[1] < 0.5 * sizes[0]  # names, vectors and heads weigh much in so small a model
    transformers.AutoModelForSequenceClassification.from_pretrained(original)


@torch.inference_mode()
def test_packed_weights_are_served_as_transformers_computes_with_the_rounded_ones(folders, kind):
    original, packed = folders
    pack_of_texts = random_pack(LENGTHS)
    found = np.stack(EncoderModel(packed, "fp32").run(Operation("classify"), pack_of_texts))
    model = reference(original, kind)
    ids = np.split(pack_of_texts.ids, np.cumsum(LENGTHS)[:-1])
    expected = [
        model(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits.softmax(-1)[0].numpy()
        for row in ids
    ]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)


def test_they_stay_packed_in_memory(folders):
    _, packed = folders
    model = EncoderModel(packed, "fp32").model
    floats = sum(weight.nbytes for weight in model.parameters() if weight.dim() == 2)
    whole = load_as_saved(packed)
    assert floats < 0.5 * sum(weight.nbytes for weight in whole.parameters() if weight.dim() == 2)


def test_they_are_unpacked_to_be_trained(folders, kind):
    original, packed = folders
    expected = reference(original, kind).state_dict()
    auto_class = transformers.AutoModelForSequenceClassification
    for model in (load_as_saved(packed), load_model(packed, auto_class, random_weights=False, seed=0)):
        assert not model.new_weights
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0.0)


def test_integers_multiply_packed_weights_too(folders):
    _, packed = folders
    packs = [random_pack(LENGTHS, seed) for seed in range(4)]
    exact = EncoderModel(packed, "fp32")
    write_roundings(packed, calibrate(exact, packs))
    served = EncoderModel(packed)
    assert all(type(layer).__name__.startswith("Int8") for layer in served.trunk.layers)
    other = random_pack(LENGTHS, 50)
    found, expected = (np.stack(model.run(Operation("embed"), other)) for model in (served, exact))
    assert (found * expected).sum(axis=1).min() > 0.99


def test_attention_is_not_shown(folders):
    original, packed = folders
    assert "attention" in describe(original).abilities
    assert "attention" not in describe(packed).abilities


def test_a_head_that_shares_the_table_of_words_keeps_its_floats(tmp_path):
    folder = save_encoder(tmp_path, "bert", "fill-mask")
    pack_folder(folder, 8)
    pack_of_texts = random_pack(LENGTHS)
    served = EncoderModel(folder, "fp32").run(Operation("fill-mask", 3), pack_of_texts)
    with unpacked_folder(folder) as plain:
        shutil.copytree(plain, tmp_path / "plain")
    shutil.copy(folder / "tokenizer.json", tmp_path / "plain")
    expected = EncoderModel(tmp_path / "plain", "fp32").run(Operation("fill-mask", 3), pack_of_texts)
    for ours, theirs in zip(served, expected, strict=True):
        for (ids, scores), (other_ids, other_scores) in zip(ours, theirs, strict=True):
            assert ids.tolist() == other_ids.tolist()
            np.testing.assert_allclose(scores, other_scores, atol=1e-5)


def test_a_damaged_file_is_one_clear_line(tmp_path):
    folder = save_encoder(tmp_path, "bert", "embed")
    (folder / FILE).write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=rf"{FILE}' does not hold packed weights$"):
        load_as_saved(folder)
