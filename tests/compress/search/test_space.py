"""What a search for a smaller model varies, and what it tries first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from headway.compress.search.space import Whole, first_points, search_space
from headway.config.base import ConfigError
from headway.config.compression.compress import CompressConfig
from headway.data.corpus.tokenizer import train_tokenizer
from headway.data.corpus.vocabulary import most_used_tokens
from headway.engine.pruning.cut import Sizes

SIZES = Sizes(layers=6, heads=12, hidden=384, neurons=1536)
MINILM = Whole(SIZES, words=30_522, weights=22_713_216)


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, vocab_size=300, lowercase=True, max_length=64)


@pytest.fixture(scope="module")
def task(texts):
    """A task as far as a space depends on it."""
    rows = SimpleNamespace(texts=[[text] for text in texts[:10]])
    stub: Any = SimpleNamespace(split=lambda name: rows)
    return stub


def config(target, **more):
    return CompressConfig.model_validate({"model": "m", "task": "t", "target": target} | more)


def domains(space):
    return {path: parameter.domain for path, parameter in space.items()}


def test_layers_and_neurons_are_searched_and_words_if_a_size_is_wanted(task, tokenizer, texts):
    wanted = {"layers": [6, 4, 3, 2, 1], "neurons": [1536, 768]}
    assert domains(search_space(config({"latency": 0.4}), SIZES, task, tokenizer)) == wanted
    used = len(most_used_tokens(tokenizer, texts[:10]))
    least = len(most_used_tokens(tokenizer, []))
    words = {"vocabulary": list(dict.fromkeys(max(least, -(-used // part)) for part in (1, 2, 3)))}
    assert domains(search_space(config({"size": 0.4}), SIZES, task, tokenizer)) == wanted | words


def test_what_is_written_is_searched_instead(task, tokenizer):
    search = {"layers": "randint(1, 4)", "finetune.epochs": [1, 3]}
    space = search_space(config({"latency": 0.4}, search=search), SIZES, task, tokenizer)
    assert set(space) == set(search)
    original, first, *_ = first_points(space, MINILM, config({"latency": 0.2}, search=search))
    assert (original, first) == ({}, {"layers": 3, "finetune.epochs": 3})


def test_what_computes_most_among_what_may_reach_the_target_is_tried_first(task, tokenizer):
    def first(**more):
        settings = config(**more)
        space = search_space(settings, SIZES, task, tokenizer)
        original, *points = first_points(space, MINILM, settings)
        assert original == {}
        assert len(points) == settings.samples // 2
        return [(point["layers"], point["neurons"]) for point in points]

    assert first(target={"latency": "0.5x"}, precisions=["float"])[:2] == [(3, 1536), (4, 768)]
    assert first(target={"throughput": "6x"}, precisions=["float"])[0] == (1, 1536)
    assert first(target={"throughput": "5x"})[0] == (3, 1536)


def test_size_is_predicted_from_words_and_layers(task, tokenizer):
    def size(**shape):
        return 0.1 * MINILM.shortfall(shape, config({"size": 0.1}))

    half = 0.5 * 22_713_216
    assert size() == pytest.approx(0.5)
    assert size(vocabulary=8000) == pytest.approx((half - 0.5 * 22_522 * 384) / (2 * half))
    assert size(layers=3) == pytest.approx((half - 0.5 * 3 * (4 * 384**2 + 2 * 384 * 1536)) / (2 * half))


def test_values_that_the_model_does_not_have_are_refused(task, tokenizer):
    for search, message in [
        ({"layers": [7]}, "search.layers: 7 is not allowed; the model has 6 layers"),
        ({"neurons": "randint(0, 9)"}, "search.neurons: 0 is not allowed"),
        ({"vocabulary": [10**6]}, "search.vocabulary: 1000000 is not allowed"),
    ]:
        with pytest.raises(ConfigError, match=message):
            search_space(config({"size": 0.4}, search=search), SIZES, task, tokenizer)
