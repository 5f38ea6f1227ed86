"""Packs of every operation: nothing is read back from a GPU on the way, and recorded ones answer the same."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from gpu_stand_in import META, Operations
from tiny_encoders import CONFIGS
from torch.utils._python_dispatch import TorchDispatchMode

from encoder_folders import HEADS, random_pack, save_encoder
from headway.engine.inference.graph_sizes import graph_sizes
from headway.engine.inference.graphs import Recording
from headway.engine.model.attention import ATTENTION_NAME
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack

CPU = torch.device("cpu")
LENGTHS = [5, 23, 3, 12, 23, 8]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("encoders"), {}

    def folder(kind, operation):
        if (kind, operation) not in made:
            made[kind, operation] = save_encoder(root / f"{kind}-{operation}", kind, operation)
        return made[kind, operation]

    return folder


def on_meta(folder, precision="bf16"):
    return EncoderModel(folder, precision, META)


# Attention weights are left out: transformers' own padded layers compute them, one sequence at a time, which
# reads its masks back. They are asked for one text at a time, by people.
@pytest.mark.parametrize("operation", HEADS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pack_reads_nothing_back_from_a_gpu(encoder, kind, operation):
    model, asked = on_meta(encoder(kind, operation)), Operation(operation, 5)
    for lengths in (LENGTHS, [3], [10] * 30):
        pack = random_pack(lengths)
        with torch.inference_mode():
            output = model.compute(asked, model.batch(asked, pack))
        rows = {"tokens": sum(lengths), "answer": sum(lengths), "fill-mask": int((pack.ids == 4).sum())}
        assert output.device == META
        assert len(output) == rows.get(operation, len(lengths))


class Crossings(TorchDispatchMode):
    """Counts operations that take a tensor on the host and give one on the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        result = function(*arguments, **(settings or {}))
        on_host = any(isinstance(one, torch.Tensor) and one.device == CPU for one in arguments)
        self.count += on_host and isinstance(result, torch.Tensor) and result.device == META
        return result


@pytest.mark.parametrize("operation", HEADS)
def test_a_pack_crosses_to_a_gpu_in_one_copy(encoder, operation):
    model, asked = on_meta(encoder("bert", operation)), Operation(operation, 5)
    batch = model.batch(asked, random_pack(LENGTHS))
    with torch.inference_mode(), Crossings() as seen:
        model.compute(asked, batch)
    assert seen.count == 1


def test_a_pack_of_minilm_embeds_in_at_most_180_operations_views_included(tmp_path):
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    model, operation = on_meta(tmp_path), Operation("embed")
    batch = model.batch(operation, random_pack([80] * 25))
    with torch.inference_mode(), Operations() as seen:
        model.compute(operation, batch)
    assert seen.counts.total() <= 180, seen.counts.most_common(20)


@pytest.mark.parametrize("kind", CONFIGS)
def test_attention_weights_leave_what_others_compute_as_it_is(encoder, kind):
    model = EncoderModel(encoder(kind, "embed"), "fp32", CPU)
    embed, attention = Operation("embed"), Operation("attention")
    packs = [random_pack(LENGTHS, seed) for seed in range(4)]
    vectors = [np.stack(model.run(embed, pack)) for pack in packs]
    weights = [model.run(attention, pack) for pack in packs]

    def run(number):
        pack = number // 2 % len(packs)
        if number % 2:
            np.testing.assert_allclose(np.stack(model.run(embed, packs[pack])), vectors[pack], atol=1e-5)
            return
        for found, expected in zip(model.run(attention, packs[pack]), weights[pack], strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-3)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(160)))
    assert model.model.config._attn_implementation == ATTENTION_NAME


def test_attention_weights_are_computed_with_the_same_parameters(encoder):
    model = EncoderModel(encoder("bert", "embed"), "fp32", CPU)
    before = random_pack(LENGTHS)
    first = model.run(Operation("attention"), before)
    with torch.no_grad():
        model.model.embeddings.word_embeddings.weight.add_(
            torch.randn_like(model.model.embeddings.word_embeddings.weight)
        )
    second = model.run(Operation("attention"), before)
    assert any(np.abs(one - other).max() > 0.01 for one, other in zip(first, second, strict=True))


def record(call):
    """Replaces CUDA: computes again, and writes to the same memory."""
    output = call()
    return Recording(lambda: output.copy_(call()), output)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("operation", HEADS)
def test_recorded_packs_answer_as_others_do(encoder, kind, operation):
    folder, asked = encoder(kind, operation), Operation(operation, 5)
    plain, recorded = EncoderModel(folder, "fp32", CPU), EncoderModel(folder, "fp32", CPU)
    sizes = graph_sizes(recorded.description.max_length)
    assert recorded.record_graphs(record) == len(sizes) * (1 if operation == "embed" else 2)
    for seed, lengths in enumerate((LENGTHS, [3], [10] * 30, [16] * 16)):
        pack = random_pack(lengths, seed)
        for ours, theirs in zip(recorded.run(asked, pack), plain.run(asked, pack), strict=True):
            assert_alike(ours, theirs)


def assert_alike(actual, expected):
    if isinstance(expected, list):  # hidden words
        for ours, theirs in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)
    else:
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_no_graphs_are_recorded_without_a_gpu(encoder):
    model = EncoderModel(encoder("bert", "embed"), "fp32", CPU)
    assert model.record_graphs() == 0


def test_hidden_words_are_those_of_their_sequence_and_some_have_none(encoder):
    model = EncoderModel(encoder("bert", "fill-mask"), "fp32", CPU)
    pack = Pack(np.asarray([2, 9, 3, 2, 4, 4, 3], np.int32), np.zeros(7, np.uint8), np.asarray([3, 4]))
    none, two = model.run(Operation("fill-mask", 3), pack)
    assert none == [] and len(two) == 2
    reference = transformers.BertForMaskedLM.from_pretrained(encoder("bert", "fill-mask")).eval()
    with torch.inference_mode():
        logits = reference(input_ids=torch.tensor([[2, 4, 4, 3]])).logits[0, 1:3]
    for (ids, probabilities), row in zip(two, logits.softmax(-1), strict=True):
        best = row.topk(3)
        assert ids.tolist() == best.indices.tolist() and ids.dtype == np.int64
        np.testing.assert_allclose(probabilities, best.values, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("operation", HEADS)
def test_graphs_on_a_gpu_answer_as_the_cpu_does(encoder, kind, operation):
    folder, asked = encoder(kind, operation), Operation(operation, 5)
    expected, model = EncoderModel(folder, "fp32", CPU), EncoderModel(folder, "bf16", torch.device("cuda"))
    model.record_graphs()
    for seed, lengths in enumerate((LENGTHS, [3], [10] * 30, [16] * 16)):
        pack = random_pack(lengths, seed)
        for ours, theirs in zip(model.run(asked, pack), expected.run(asked, pack), strict=True):
            if not isinstance(theirs, list):
                np.testing.assert_allclose(ours, theirs, atol=0.05)
