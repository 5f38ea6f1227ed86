"""A WordPiece tokenizer with fewer tokens: those that some texts use most, and all single characters.

WordPiece splits a word from its beginning into the longest pieces that it knows. A token that is dropped is
split into shorter ones, down to single characters, so no text that could be read before is lost. As long as
all tokens that a text uses stay, its tokens are the same ones as before.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headway.config.base import ConfigError
from headway.data.corpus.tokenizer import tokenize

_RESERVED = re.compile(r"\[unused\d+\]")


def check_wordpiece(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose tokens cannot be dropped one by one.

    Raises:
        ConfigError: it is not WordPiece; merges of byte pairs, for example, need each other.
    """
    kind = _state(tokenizer)["model"]["type"]
    if kind != "WordPiece":
        raise ConfigError(f"vocabulary: tokens of a {kind} tokenizer cannot be dropped; allowed: WordPiece")


def most_used_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int | None = None
) -> list[int]:
    """The ids, increasing, of the tokens to keep.

    Args:
        tokenizer: WordPiece.
        texts: whose tokens are counted.
        size: how many stay; those that are used least go first, of the unused ones the last of the
            vocabulary, which tokenizers sort by frequency. If None, all that are used stay, and no others.

    Returns:
        Those of special tokens, single characters, and then the most frequent tokens of the texts.

    Raises:
        ConfigError: the tokenizer is not WordPiece, has fewer tokens, or more must stay.
    """
    check_wordpiece(tokenizer)
    always = _always_kept(tokenizer)
    if size is not None and not len(always) <= size <= len(tokenizer):
        raise ConfigError(
            f"vocabulary: {size} is not allowed; the tokenizer has {len(tokenizer)} tokens, of which "
            f"{len(always)} must stay: special ones, and single characters"
        )
    counts: Counter[int] = Counter()
    for ids in tokenize(tokenizer, texts):
        counts.update(ids.tolist())
    others = counts.keys() - always
    if size is None:
        return sorted([*always, *others])
    spare = {number for token, number in tokenizer.get_vocab().items() if _RESERVED.fullmatch(token)}
    others |= set(range(len(tokenizer))) - always - spare
    # Places that BERT's vocabulary has for words to come are filled last.
    ranked = sorted(others, key=lambda token: (-counts[token], token)) + sorted(spare - others)
    return sorted([*always, *ranked[: size - len(always)]])


def _always_kept(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens, those that were added, and single characters, with which any word begins or goes on."""
    state = _state(tokenizer)
    prefix = state["model"]["continuing_subword_prefix"]
    vocabulary: Mapping[str, int] = state["model"]["vocab"]
    single = {number for token, number in vocabulary.items() if len(token.removeprefix(prefix)) == 1}
    return single | {token["id"] for token in state["added_tokens"]}


def smaller_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """A tokenizer with some of the tokens; each gets its index among those kept as its id.

    Args:
        tokenizer: WordPiece.
        kept: ids as `most_used_tokens` returns them.
    """
    numbers = {old: new for new, old in enumerate(kept)}
    state = _state(tokenizer)
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {
        token: numbers[number] for token, number in vocabulary.items() if number in numbers
    }
    for token in state["added_tokens"]:
        token["id"] = numbers[token["id"]]
    _renumber(state["post_processor"], numbers)
    # How texts are cut and filled up belongs to who calls the tokenizer, not to its file.
    state["truncation"] = state["padding"] = None
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )


def _renumber(processor: dict[str, Any] | None, numbers: Mapping[int, int]) -> None:
    """Give the special tokens that a post-processor puts around texts their new ids, in place."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _renumber(part, numbers)
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [numbers[old] for old in token["ids"]]
    for name in ("cls", "sep"):
        if name in processor:
            token, old = processor[name]
            processor[name] = [token, numbers[old]]


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as its file would describe it."""
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state
