"""Choose the tokens that masked language modelling hides, and what stands in their place.

Devlin et al. 2018, section 3.1 and appendix A.1. Whole words: the rule of the authors' later release.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.config.steps import MaskingConfig


class Vocabulary(NamedTuple):
    """What masking has to know of a tokenizer.

    Attributes:
        size: how many tokens it has.
        mask: id of [MASK].
        special: ids that are never hidden and never stand in for another, ascending.
        continues: bool, shape (size,), True for tokens that go on with a word.
    """

    size: int
    mask: int
    special: np.ndarray
    continues: np.ndarray


class Masked(NamedTuple):
    """A masked sequence.

    Attributes:
        input_ids: int32, shape (tokens,), with the chosen tokens replaced.
        places: int64, shape (chosen,), ascending.
        labels: int32, shape (chosen,), the tokens that stood there.
    """

    input_ids: np.ndarray
    places: np.ndarray
    labels: np.ndarray


def mask_sequence(
    input_ids: np.ndarray, config: MaskingConfig, vocabulary: Vocabulary, rng: np.random.Generator
) -> Masked:
    """Choose `rate` of the tokens, at least one: 80 % become [MASK], 10 % a random token, 10 % stay."""
    maskable = np.flatnonzero(~np.isin(input_ids, vocabulary.special))
    wanted = min(len(maskable), max(1, round(config.rate * len(maskable))))
    if config.whole_words:
        places = _choose_words(maskable, input_ids, wanted, vocabulary, rng)
    else:
        places = np.sort(rng.permutation(maskable)[:wanted])
    labels = input_ids[places]
    replaced = input_ids.copy()
    replaced[places] = _replacements(labels, vocabulary, rng)
    return Masked(replaced, places, labels)


def _choose_words(
    maskable: np.ndarray,
    input_ids: np.ndarray,
    wanted: int,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> np.ndarray:
    """Whole words in random order for as long as they fit into `wanted` tokens; at least one word."""
    if not len(maskable):
        return maskable
    follows = np.diff(maskable, prepend=-2) == 1
    starts_word = ~(vocabulary.continues[input_ids[maskable]] & follows)
    words = np.split(maskable, np.flatnonzero(starts_word)[1:])
    chosen: list[np.ndarray] = []
    room = wanted
    for index in rng.permutation(len(words)):
        word = words[index]
        if len(word) <= room:
            chosen.append(word)
            room -= len(word)
    if not chosen:
        chosen.append(words[int(rng.integers(len(words)))])
    return np.sort(np.concatenate(chosen))


def _replacements(labels: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
    fate = rng.random(len(labels))
    random_tokens = rng.integers(0, vocabulary.size, len(labels), dtype=np.int32)
    unfit = np.isin(random_tokens, vocabulary.special)
    random_tokens[unfit] = labels[unfit]
    return np.select([fate < 0.8, fate < 0.9], [np.int32(vocabulary.mask), random_tokens], labels)
