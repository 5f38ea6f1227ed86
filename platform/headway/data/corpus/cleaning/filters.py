"""Rules by which texts are left out of a corpus."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

from headway.config.base import ConfigError
from headway.config.corpora.cleaning import CleaningConfig

_VISIBLE = re.compile(r"\s+")
_LETTERS = re.compile(r"[^\W\d_]+")
_WORDS_TO_REPEAT = 50
_LANGUAGE_CHARACTERS = 1000


def broken_rule(text: str, config: CleaningConfig) -> str | None:
    """The name of the first rule that leaves a text out; None if it stays.

    The rules, in this order: `min_words`, `max_words`, `max_duplicate_lines`, `max_repeated_words`,
    `min_letters`, `languages`. Each is the setting of that name.

    Raises:
        ConfigError: a language is not known, or `languages` needs an extra that is not installed.
    """
    words = text.split()
    if len(words) < config.min_words:
        return "min_words"
    if config.max_words and len(words) > config.max_words:
        return "max_words"
    if config.max_duplicate_lines < 1 and duplicate_lines(text) > config.max_duplicate_lines:
        return "max_duplicate_lines"
    if config.max_repeated_words < 1 and repeated_words(words) > config.max_repeated_words:
        return "max_repeated_words"
    if config.min_letters > 0 and letters(text) < config.min_letters:
        return "min_letters"
    if config.languages and language_of(text) not in _known(tuple(config.languages)):
        return "languages"
    return None


def duplicate_lines(text: str) -> float:
    """The fraction of lines that are not empty and the same as an earlier one."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def repeated_words(words: list[str]) -> float:
    """The fraction of characters that are in the most frequent run of three words; 0 if it is there once.

    A text of fewer than 50 words repeats too little to say anything.
    """
    if len(words) < _WORDS_TO_REPEAT:
        return 0.0
    runs = Counter(zip(words, words[1:], words[2:], strict=False))
    run, count = runs.most_common(1)[0]
    return count * sum(map(len, run)) / sum(map(len, words)) if count > 1 else 0.0


def letters(text: str) -> float:
    """The fraction of the characters other than white space that are letters of any script."""
    visible = len(_VISIBLE.sub("", text))
    return sum(map(len, _LETTERS.findall(text))) / visible if visible else 0.0


@lru_cache(maxsize=1)  # asked by the rule, then for the count
def language_of(text: str) -> str:
    """The ISO 639 code of a text's language, by its beginning.

    Raises:
        ConfigError: an extra is not installed.
    """
    return str(_identifier().classify(text[:_LANGUAGE_CHARACTERS])[0])


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ConfigError(
            "clean.languages: needs an extra; install it: pip install 'headway[corpora]'"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)


@lru_cache(maxsize=8)
def _known(languages: tuple[str, ...]) -> frozenset[str]:
    known = {str(code) for code in _identifier().labels}
    for language in languages:
        if language not in known:
            raise ConfigError(
                f"clean.languages: {language!r} is not known; allowed: {', '.join(sorted(known))}"
            )
    return frozenset(languages)
