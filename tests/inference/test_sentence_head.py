"""Vectors of folders that sentence-transformers saved: its own, or a refusal in one line."""

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import modules as its
from torch import nn

from encoder_folders import save_bert
from headway.config.base import ConfigError
from headway.data.corpus.tokenizer import train_tokenizer
from headway.inference.description import describe
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.inference.tokens import TextTokenizer

TEXTS = [
    "The sailor steers the OLD boat before noon.",
    "A baker slices fresh bread every morning, and every evening she sweeps the floor of her bakery.",
    "Quiet!",
    "Captain Ahab hunts the white whale near Nantucket.",
]
POOLINGS = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
OLD_NAMES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
WIDTH = 32


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny encoder whose tokenizer tells upper case from lower."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer(TEXTS * 5, vocab_size=400, lowercase=False, max_length=24)
    save_bert(folder, tokenizer, hidden_size=WIDTH, max_position_embeddings=24, initializer_range=0.3)
    return folder


@pytest.fixture
def save(encoder, tmp_path):
    """Saves modules behind the encoder with sentence-transformers, which then gives the vectors expected."""

    def save(*modules, **settings):
        torch.manual_seed(1)
        transformer = its.Transformer(str(encoder), **settings)
        SentenceTransformer(modules=[transformer, *modules], device="cpu").save(str(tmp_path))
        return tmp_path

    return save


def expected(folder):
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)


def found(folder):
    model = EncoderModel(folder, "fp32", torch.device("cpu"))
    pieces = TextTokenizer(folder, model.description.max_length).pieces(TEXTS)
    vectors = np.stack(model.run(Operation("embed"), Pack.of([piece.sequence for piece in pieces])))
    assert vectors.shape == (len(TEXTS), model.description.embedding_size)
    return vectors


def assert_the_same(folder):
    np.testing.assert_allclose(found(folder), expected(folder), atol=2e-6)


@pytest.mark.parametrize("pooling", [*POOLINGS, ("max", "cls"), tuple(POOLINGS)])
def test_each_pooling_gives_the_vectors_of_sentence_transformers(save, pooling):
    assert_the_same(save(its.Pooling(WIDTH, pooling)))


@pytest.mark.parametrize("poolings", [*([one] for one in POOLINGS), ["mean", "cls"], POOLINGS])
def test_the_settings_of_older_releases_give_the_same_vectors(save, poolings):
    folder = save(its.Pooling(WIDTH, "max"), its.Normalize())
    old = {name: mode in poolings for mode, name in OLD_NAMES.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH} | old))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (path, kind) in enumerate(kinds)
            ]
        )
    )
    shutil.rmtree(folder / "2_Normalize")  # they left it empty, and git drops empty folders
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": true}')
    assert_the_same(folder)


@pytest.mark.parametrize(
    "modules",
    [
        [its.Normalize(), its.Dense(WIDTH, 16)],
        [its.Dense(WIDTH, 16, bias=False, activation_function=nn.Identity()), its.Normalize()],
        [its.Dense(WIDTH, 48, activation_function=nn.GELU()), its.Dense(48, 8, use_residual=True)],
        [its.Dense(WIDTH, WIDTH, use_residual=True), its.Dropout(0.5), its.LayerNorm(WIDTH)],
    ],
    ids=["normalize-dense", "dense-normalize", "dense-dense", "dense-dropout-norm"],
)
def test_each_module_behind_the_pooling_is_applied_in_its_place(save, modules):
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    assert_the_same(save(its.Pooling(WIDTH, "mean"), *modules))


def test_texts_are_cut_where_the_folder_says(save):
    folder = save(its.Pooling(WIDTH, "mean"), max_seq_length=9)
    assert describe(folder).max_length == 9
    assert_the_same(folder)


def test_a_cross_encoder_of_theirs_can_be_described(encoder, tmp_path):
    CrossEncoder(str(encoder), num_labels=1, device="cpu").save(str(tmp_path))
    assert describe(tmp_path).scores_pairs


def move_activation(folder, release):
    """Write a cross-encoder's activation where an older release wrote it."""
    path = folder / "config_sentence_transformers.json"
    activation = json.loads(path.read_text())["activation_fn"]
    path.unlink()
    (folder / "modules.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    key = "sentence_transformers" if release == "4.0" else "sbert_ce_default_activation_function"
    config[key] = {"activation_fn": activation, "version": release} if release == "4.0" else activation
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("activation", [None, nn.Sigmoid(), nn.Identity(), nn.Tanh()])
@pytest.mark.parametrize("release", ["3.0", "4.0", "this"])
def test_a_cross_encoders_score_goes_through_the_activation_that_it_was_saved_with(
    encoder, tmp_path, activation, release
):
    CrossEncoder(str(encoder), num_labels=1, device="cpu", activation_fn=activation).save(str(tmp_path))
    if release != "this":
        move_activation(tmp_path, release)
    theirs = CrossEncoder(str(tmp_path), device="cpu")
    texts = ["Quiet!", "The whale.", "A baker."]
    expected = theirs.predict([("Who?", text) for text in texts])
    model = EncoderModel(tmp_path, "fp32")
    pieces = TextTokenizer(tmp_path, model.description.max_length).pieces(["Who?"] * len(texts), texts)
    rows = model.run(Operation("classify"), Pack.of([piece.sequence for piece in pieces]))
    assert [row[0] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_cross_encoders_activation_that_is_not_known_is_refused(encoder, tmp_path):
    CrossEncoder(str(encoder), num_labels=1, device="cpu", activation_fn=nn.Hardtanh()).save(str(tmp_path))
    with pytest.raises(ConfigError, match=r"activation_fn 'torch.nn.modules.activation.Hardtanh' is not kno"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("modules", "problem"),
    [
        ([its.WeightedLayerPooling(WIDTH, num_hidden_layers=2)], "the module WeightedLayerPooling is not"),
        ([its.Pooling(WIDTH), its.CNN(WIDTH)], "the module CNN is not known"),
        (
            [its.Pooling(WIDTH), its.Dense(WIDTH, 4, activation_function=nn.Hardtanh())],
            "activation_function 'torch.nn.modules.activation.Hardtanh' is not known",
        ),
        (
            [its.Dense(WIDTH, 4, module_input_name="token_embeddings"), its.Pooling(4)],
            "the module Dense is not known; known after an encoder: Pooling",
        ),
    ],
    ids=["layers", "cnn", "activation", "tokens"],
)
def test_a_module_that_is_not_known_is_refused_in_one_line(save, modules, problem):
    folder = save(*modules)
    with pytest.raises(ConfigError, match=problem) as error:
        describe(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode": "median"},
            "pooling_mode 'median' is not known; known: cls",
        ),
        ("1_Pooling/config.json", {"by": "magic"}, "settings of Pooling that are not known: by"),
        ("2_Dense/config.json", {"in_features": "x"}, "in_features is 'x'; allowed: a whole number"),
        ("2_Dense/config.json", {"scale": 2}, "settings of Dense that are not known: scale"),
        ("2_Dense/config.json", {"module_output_name": "token_embeddings"}, "Dense works on .*allowed"),
        ("sentence_bert_config.json", {"query_length": 8}, "its encoder has query_length 8"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query", "prompts": {"query": "query: "}},
            "it puts the prompt 'query' before every text",
        ),
    ],
)
def test_a_setting_that_is_not_known_is_refused_in_one_line(save, file, change, problem):
    folder = save(its.Pooling(WIDTH), its.Dense(WIDTH, 4))
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=problem) as error:
        describe(folder)
    assert "\n" not in str(error.value)


def test_weights_that_are_missing_or_do_not_fit_are_refused_in_one_line(save):
    folder = save(its.Pooling(WIDTH), its.Dense(WIDTH, 4))
    settings = json.loads((folder / "2_Dense" / "config.json").read_text())
    for change, problem in (
        ({"out_features": 5}, "weights that do not fit"),
        ({"in_features": 8}, "given 32"),
    ):
        (folder / "2_Dense" / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ConfigError, match=problem) as error:
            EncoderModel(folder, "fp32", torch.device("cpu"))
        assert "\n" not in str(error.value)
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        describe(folder)


def test_a_pooling_without_its_place_is_refused(save):
    folder = save(its.Pooling(WIDTH, "cls"))
    (folder / "modules.json").unlink()
    with pytest.raises(ConfigError, match=r"a folder 1_Pooling, but no modules\.json"):
        describe(folder)


def test_code_of_others_is_refused(save):
    folder = save(its.Pooling(WIDTH))
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "my_package.Pooling"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ConfigError, match="not sentence-transformers' own"):
        describe(folder)
