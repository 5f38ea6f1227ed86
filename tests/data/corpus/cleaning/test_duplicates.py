"""Near copies: found by their likeness, and none of a held-out text is trained on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from headway.config.corpus import CorpusConfig
from headway.data.corpus.build import build_corpus
from headway.data.corpus.cleaning import duplicates
from headway.data.corpus.cleaning.minhash import HASHES, band_width, likeness, run_hashes, signatures
from headway.data.sources.splitting import text_key, unit_hash

THRESHOLD = 0.8


def words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(3000)}" for _ in range(count)]


def jaccard(one: str, other: str) -> float:
    """The likeness of two texts, from their sets of runs of five words."""
    runs = [
        {tuple(text.lower().split()[i : i + 5]) for i in range(max(1, len(text.split()) - 4))}
        for text in (one, other)
    ]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def changed(text: str, wanted: float, rng: random.Random) -> str:
    """The text with as many words replaced, each of which changes five runs, as the likeness asks for."""
    copy = text.split()
    count = max(1, round(len(copy) * (1 - wanted) / 5 / (1 + wanted)))
    for place in rng.sample(range(5, len(copy) - 5), count):
        copy[place] = f"n{rng.randrange(10**9)}"
    return " ".join(copy)


def is_held_out(text: str) -> bool:
    return unit_hash(text_key(text), "held-out") < 0.2


def kept_texts(config: CorpusConfig, folder: Path, monkeypatch) -> dict[str, list[str]]:
    """The texts of both sides, as they went to the tokenizer."""
    found: dict[str, list[str]] = {"train": [], "validation": []}
    from headway.data.corpus import tokenize_part

    original = tokenize_part.TokenizePart._write

    def noted(self, draft, side):
        from headway.data.corpus.parts import array, kept, texts

        chosen = kept(self.folder, self.drops) & (array(self.folder, "sides") == (side == "validation"))
        found[side] += list(texts(self.folder, chosen))
        return original(self, draft, side)

    monkeypatch.setattr(tokenize_part.TokenizePart, "_write", noted)
    build_corpus(config, folder / "stores", folder / "work", block_bytes=20_000)
    return found


@pytest.fixture
def planted(tmp_path) -> tuple[CorpusConfig, list[str], dict[str, tuple[str, float]]]:
    """200 texts and a copy of each that is 60 to 95 % like it, in a file; and the originals of the copies."""
    rng = random.Random(5)
    originals = [" ".join(words(rng, rng.randrange(250, 400))) for _ in range(200)]
    copies = {}
    for index, text in enumerate(originals):
        copy = changed(text, [0.6, 0.82, 0.86, 0.9, 0.95][index % 5], rng)
        copies[copy] = (text, jaccard(text, copy))
    texts = [*originals, *copies]
    rng.shuffle(texts)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = CorpusConfig(source=str(path), vocab_size=3000, near_duplicates=THRESHOLD)
    return config, originals, copies


@pytest.mark.parametrize("per_range", [2000, 1 << 21])
def test_planted_near_copies_are_dropped_and_others_stay(per_range, planted, tmp_path, monkeypatch):
    config, originals, copies = planted
    monkeypatch.setattr(duplicates.ranges_of, "__defaults__", (per_range,))
    sides = kept_texts(config, tmp_path, monkeypatch)
    stays = {*sides["train"], *sides["validation"]}
    alike = {copy: like for copy, (text, like) in copies.items() if like >= THRESHOLD}
    found = [copy for copy in alike if not {copy, copies[copy][0]} <= stays]
    # Of those just as alike as the threshold, half are told apart by the error of their signatures, 0.04.
    clear = [copy for copy, like in alike.items() if like >= 0.88]
    assert sum(copy in set(found) for copy in clear) / len(clear) >= 0.98
    assert len(found) / len(alike) >= 0.8
    dropped = {*originals, *copies} - stays
    partners = {copy: text for copy, (text, _) in copies.items()} | {
        text: copy for copy, (text, _) in copies.items()
    }
    # One of a pair goes, never both, and none that is not alike, but for those beside a held-out text.
    wrong = [
        text for text in dropped if jaccard(text, partners[text]) < 0.7 and not is_held_out(partners[text])
    ]
    assert not wrong
    assert all(partners[text] in stays for text in dropped)


def test_no_near_copy_of_a_held_out_text_is_trained_on(planted, tmp_path, monkeypatch):
    config, _, copies = planted
    sides = kept_texts(config, tmp_path, monkeypatch)
    train, held_out = set(sides["train"]), set(sides["validation"])
    alike = [(copy, text) for copy, (text, like) in copies.items() if like >= THRESHOLD]
    assert not [pair for pair in alike if train.intersection(pair) and held_out.intersection(pair)]
    assert sum(is_held_out(copy) != is_held_out(text) for copy, text in alike) > 30  # which would straddle


@pytest.mark.parametrize("wanted", [0.3, 0.6, 0.8, 0.95])
def test_signatures_tell_how_alike_texts_are(wanted):
    rng = random.Random(1)
    one = [" ".join(words(rng, 300)) for _ in range(30)]
    other = [changed(text, wanted, rng) for text in one]
    told = likeness(signatures(one), signatures(other))
    actual = [jaccard(a, b) for a, b in zip(one, other, strict=True)]
    assert np.abs(told - actual).max() < 5 * (0.25 / HASHES) ** 0.5
    assert np.abs(told - actual).mean() < 0.04


def test_case_and_punctuation_do_not_count_but_the_order_of_words_does():
    one = run_hashes("The cat sat, on the mat today.", {})
    assert np.array_equal(one, run_hashes("the CAT sat on the mat -- today", {}))
    assert not set(one.tolist()) & set(run_hashes("today mat the on sat cat the", {}).tolist())
    assert len(run_hashes("", {})) == len(run_hashes("two words", {})) == 1
    assert len(run_hashes("今日は雨が降る", {})) == 3  # of 7 characters


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_nearly_all_pairs_as_alike_as_the_threshold(threshold):
    width = band_width(threshold)
    assert 1 - (1 - threshold**width) ** (HASHES // width) >= 0.999
    assert 1 - (1 - threshold ** (width + 1)) ** (HASHES // (width + 1)) < 0.999
