"""Settings of what is done to texts, and which are left out, before they become a corpus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headway.config.base import Config, Count

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class CleaningConfig(Config):
    """How texts are repaired, and which are left out; each rule counts what it drops.

    The default limits of repetition and letters are those of Gopher (Rae et al. 2021, table A1).
    """

    repair: bool = Field(
        False, description="undo wrong decodings, such as `âœ”` for `✔`, by ftfy; 7 MB/s a core"
    )
    unicode_form: Literal["NFC", "NFKC", "none"] = Field(
        "NFC", description="the Unicode normal form of all texts; control characters are removed too"
    )
    min_words: Count = Field(0, description="drop texts of fewer words")
    max_words: Count = Field(0, description="drop texts of more words; 0 for no limit")
    max_duplicate_lines: Share = Field(
        0.3, description="drop texts of which a larger fraction of the lines repeat earlier ones"
    )
    max_repeated_words: Share = Field(
        0.18,
        description="drop texts of 50 words or more in which the most frequent run of three words has a "
        "larger fraction of the characters",
    )
    min_letters: Share = Field(
        0.6, description="drop texts in which a smaller fraction of the visible characters are letters"
    )
    languages: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]] = Field(
        [], description="ISO 639 codes of the languages to keep, as py3langid tells them; empty for all"
    )
