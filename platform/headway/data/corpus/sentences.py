"""Split documents into sentences, the units that next-sentence prediction pairs."""

from __future__ import annotations

import re

from sentencex import segment

_PARAGRAPH = re.compile(r"\n\s*\n|\r\n\s*\r\n")


def split_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of a document, in order, in any script and whether its letters have case or not.

    A blank line ends a sentence, whatever comes before it. Other white space becomes single spaces.

    Args:
        text: the document.
        language: its ISO 639 code. The abbreviations of that language do not end a sentence.
    """
    paragraphs = (" ".join(paragraph.split()) for paragraph in _PARAGRAPH.split(text))
    found = (sentence.strip() for paragraph in paragraphs for sentence in segment(language, paragraph))
    return [sentence for sentence in found if sentence]
