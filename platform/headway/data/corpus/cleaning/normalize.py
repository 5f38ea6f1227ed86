"""Repair texts: wrong decodings, Unicode forms, control characters."""

from __future__ import annotations

import re
import unicodedata

from headway.config.base import ConfigError
from headway.config.corpora.cleaning import CleaningConfig

# All of the categories Cc and Cf that are no white space and join no letters, and U+FFFD, which stands for
# what could not be decoded. U+200C and U+200D matter in Indic and Arabic scripts and in emoji.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufffd]"
)
_LINE_ENDS = re.compile("\r\n?|\x85|\u2028")
_ASCII_UNCHANGED = re.compile("[^&\x1b]*", re.DOTALL)


def normalize(text: str, config: CleaningConfig) -> str:
    """The text as it is stored, by the settings.

    Raises:
        ConfigError: `repair` needs an extra that is not installed.
    """
    if config.repair:
        text = _repaired(text)
    text = _LINE_ENDS.sub("\n", text)
    if config.unicode_form != "none" and not text.isascii():  # all forms of ASCII are itself
        text = unicodedata.normalize(config.unicode_form, text)
    return _UNSEEN.sub("", text)


def _repaired(text: str) -> str:
    # Of ASCII texts, ftfy changes only entities of HTML, commands to terminals and what is done above anyway.
    if text.isascii() and _ASCII_UNCHANGED.fullmatch(text):
        return text
    try:
        import ftfy
    except ImportError as error:
        raise ConfigError(
            "clean.repair: needs an extra; install it: pip install 'headway[corpora]'"
        ) from error
    # NFC is ftfy's own default, and applied by the caller with the other forms.
    return ftfy.fix_text(text, normalization=None)
