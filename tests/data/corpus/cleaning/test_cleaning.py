"""Texts repaired, and left out by rule."""

from __future__ import annotations

import pytest

from headway.config.base import ConfigError
from headway.config.corpora.cleaning import CleaningConfig
from headway.data.corpus.cleaning.filters import broken_rule, duplicate_lines, letters, repeated_words
from headway.data.corpus.cleaning.normalize import normalize

PLAIN = CleaningConfig()
ENGLISH = (
    "The council said that the new bridge over the river will open to traffic in the spring of next year."
)
GERMAN = "Der Stadtrat sagte, dass die neue Brücke über den Fluss im nächsten Frühjahr öffnet."


@pytest.mark.parametrize(
    ("text", "expected", "settings"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd", {}),
        ("e\u0301te\u0301", "\u00e9t\u00e9", {}),
        ("e\u0301", "e\u0301", {"unicode_form": "none"}),
        ("\ufb01ne \u2460", "fine 1", {"unicode_form": "NFKC"}),
        ("zero\u200b width\ufeff and\x00 con\x07trol", "zero width and control", {}),
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937", {}),  # a joiner that changes the letters
        ("The Mona Lisa doesnâ€™t have eyebrows.", "The Mona Lisa doesn't have eyebrows.", {"repair": True}),
        ("The Mona Lisa doesnâ€™t", "The Mona Lisa doesnâ€™t", {}),
        ("salt &amp; pepper", "salt & pepper", {"repair": True}),
        ("tab\tand\nline", "tab\tand\nline", {}),
    ],
)
def test_texts_are_normalised_as_the_settings_say(text, expected, settings):
    assert normalize(text, CleaningConfig(**settings)) == expected


@pytest.mark.parametrize(
    ("text", "rule", "settings"),
    [
        (ENGLISH, None, {}),
        (ENGLISH, "min_words", {"min_words": 50}),
        (ENGLISH, "max_words", {"max_words": 5}),
        ("click here\n" * 10, "max_duplicate_lines", {}),
        ("click here\n" * 10, None, {"max_duplicate_lines": 1.0}),
        ("buy cheap shoes now " * 30, "max_repeated_words", {}),
        ("12.4 33.1 99.2 | 88 -- 7", "min_letters", {}),
        ("12.4 33.1 99.2 | 88 -- 7", None, {"min_letters": 0.0}),
        (GERMAN, "languages", {"languages": ["en", "fr"]}),
        (GERMAN, None, {"languages": ["en", "de"]}),
        ("今日は雨が降ると思いますので傘を持って行きましょう。", None, {}),
    ],
)
def test_a_text_is_left_out_by_the_first_rule_it_breaks(text, rule, settings):
    assert broken_rule(text, CleaningConfig(**settings)) == rule


def test_the_measures_of_the_rules():
    assert duplicate_lines("a\n\nb\na\n a \n") == 0.5
    assert duplicate_lines("") == 0.0
    assert letters("ab 12") == 0.5
    assert letters("größe_1") == pytest.approx(5 / 7)
    assert letters(" ") == 0.0
    assert repeated_words(["a", "b", "c"] * 10) == 0.0  # too short to tell
    assert repeated_words(["a", "b", "c"] * 20) == 1.0
    assert repeated_words([f"w{n}" for n in range(60)]) == 0.0


def test_a_language_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match=r"clean\.languages: 'xx' is not known; allowed: .*af, "):
        broken_rule(ENGLISH, CleaningConfig(languages=["xx"]))
