"""Tables of token vectors, against scikit-learn, transformers and sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sklearn.decomposition import PCA

from encoder_folders import save_bert
from headway.compress.quantize import calibrate
from headway.compress.static import (
    distil_table,
    frequency_weights,
    ignored_tokens,
    principal_components,
    token_counts,
    token_vectors,
    zipf_frequencies,
)
from headway.config.base import ConfigError
from headway.config.compression.distill import DistillConfig
from headway.data.corpus.tokenizer import load_tokenizer, train_tokenizer
from headway.engine.distillation.states import StatesLoss
from headway.engine.model.encoder import load_as_saved, load_model, save_model
from headway.inference.description import describe
from headway.inference.model import EncoderModel
from headway.inference.predictor import Predictor

TEXTS = [
    "The sailor steers the OLD boat before noon.",
    "A baker slices fresh bread every morning, and every evening she sweeps the floor of her bakery.",
    "Quiet!",
    "Captain Ahab hunts the white whale near Nantucket 🐳.",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny encoder."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer(TEXTS * 5, vocab_size=400, lowercase=False, max_length=24)
    rows = len(tokenizer) + 3  # 3 stand for no token
    save_bert(folder, tokenizer, vocab_size=rows, max_position_embeddings=40, initializer_range=0.3)
    return folder


@pytest.fixture(scope="module")
def table(encoder, tmp_path_factory):
    """A folder with a table that was made of it."""
    folder = tmp_path_factory.mktemp("table")
    tokenizer = load_tokenizer(encoder)
    save_model(distil_table(EncoderModel(encoder, "fp32"), tokenizer, 16, 1e-4).model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokens_vector_is_the_mean_of_transformers_hidden_states(encoder):
    tokenizer = load_tokenizer(encoder)
    tokens = np.asarray([5, 17, 40])
    found = token_vectors(EncoderModel(encoder, "fp32"), tokenizer, tokens)
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    ids = torch.tensor([[tokenizer.cls_token_id, token, tokenizer.sep_token_id] for token in tokens])
    with torch.inference_mode():
        expected = model(input_ids=ids).last_hidden_state.mean(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("dimensions", [5, 40])
def test_principal_components_are_scikit_learns(dimensions):
    generator = np.random.default_rng(0)
    vectors = (generator.normal(size=(200, 12)) @ generator.normal(size=(12, 12)) + 3.0).astype(np.float32)
    found, kept = principal_components(torch.from_numpy(vectors), dimensions)
    reference = PCA(min(dimensions, 12), svd_solver="full")
    expected = reference.fit_transform(vectors)
    np.testing.assert_allclose(np.abs(found.numpy()), np.abs(expected), atol=2e-3)
    assert kept == pytest.approx(reference.explained_variance_ratio_.sum(), abs=1e-5)
    # The sign does not depend on the machine.
    assert all(column[np.abs(column).argmax()] > 0 for column in found.numpy().T)


def test_frequent_tokens_count_less():
    np.testing.assert_allclose(zipf_frequencies(3), np.asarray([1 / 2, 1 / 3, 1 / 4]) / (13 / 12))
    np.testing.assert_allclose(frequency_weights(np.asarray([0.0, 1e-4, 3e-4]), 1e-4), [1.0, 0.5, 0.25])


def test_counted_tokens_weigh_by_their_own_frequency(encoder):
    tokenizer, model = load_tokenizer(encoder), EncoderModel(encoder, "fp32")
    counts = token_counts(tokenizer, ["the boat the boat the", "quiet"], model.description.hidden_size * 10)
    the = tokenizer.convert_tokens_to_ids("the")
    assert counts[the] == 3 and counts[tokenizer.cls_token_id] == 0
    plain, weighted = (
        distil_table(model, tokenizer, 16, smoothing, counts).model.embedding.weight
        for smoothing in (None, 1e-2)
    )
    expected = 1e-2 / (1e-2 + 3 / counts.sum())
    torch.testing.assert_close(weighted[the], plain[the] * expected)


def test_vectors_are_those_of_sentence_transformers(table):
    texts = [*TEXTS, ""]
    found = np.stack([row["embedding"] for row in Predictor(table, precision="fp32").rows(texts)])
    expected = SentenceTransformer(str(table), device="cpu").encode(texts)
    assert expected.shape == (5, 16)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_says_nothing_has_zeros_in_the_table(encoder, table):
    weight = load_as_saved(table).embedding.weight
    ignored = ignored_tokens(load_tokenizer(encoder))
    assert not weight[ignored].any()
    assert not weight[-3:].any()
    others = np.setdiff1d(np.arange(len(weight) - 3), ignored)
    assert weight[others].any(dim=1).all()


def test_a_table_has_no_attention_to_show(table):
    description = describe(table)
    assert description.abilities == ("embeddings", "rerank")
    assert (description.layers, description.embedding_size, description.max_length) == (0, 16, 24)


def test_a_head_on_a_table_depends_on_the_direction_of_the_words_alone(table):
    auto_class = transformers.AutoModelForSequenceClassification
    model = load_model(table, auto_class, random_weights=False, seed=0, num_labels=3)
    means = torch.randn(4, 16)
    torch.testing.assert_close(model.scores(means), model.scores(means * 7.0))
    torch.testing.assert_close(model.embedding.weight, load_as_saved(table).embedding.weight)


def test_random_weights_of_a_table_are_zeros_too_for_special_tokens(table):
    model = load_model(table, transformers.AutoModel, random_weights=True, seed=0)
    assert not model.embedding.weight[list(model.config.ignored_token_ids)].any()
    assert model.embedding.weight[20].any()


def test_int8_of_a_table_is_refused(table):
    with pytest.raises(ConfigError, match="static embeddings have no layers whose products could be in int8"):
        calibrate(EncoderModel(table, "fp32"), [])


def test_layers_cannot_be_taught_to_a_table(encoder, table):
    config = DistillConfig(teacher=str(encoder), hidden=1.0)
    with pytest.raises(ConfigError, match="hidden and relations compare layers; static embeddings have none"):
        StatesLoss(config, load_as_saved(table), load_as_saved(encoder))
