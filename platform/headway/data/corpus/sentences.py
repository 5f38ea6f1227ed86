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
    return [sentence.strip() for sentence in spaced_sentences(text, language)]


def spaced_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of a document, each after the space that parts it from the one before, if any does.

    Byte-level BPE and SentencePiece have one token for a word after a space, and another for one at the start
    of a text. A blank line counts as a space.
    """
    sentences: list[str] = []
    space = ""
    for paragraph in _PARAGRAPH.split(text):
        for sentence in segment(language, " ".join(paragraph.split())):
            if sentence.strip():
                sentences.append(space + sentence.strip())
                space = " " if sentence.endswith(" ") else ""
        space = " " if sentences else ""
    return sentences
