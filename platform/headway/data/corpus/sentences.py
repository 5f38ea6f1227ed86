"""Split documents into sentences, the units that next-sentence prediction pairs."""

from __future__ import annotations

import re
from collections.abc import Iterator

_PARAGRAPH = re.compile(r"\n\s*\n|\r\n\s*\r\n")
# A full stop, question mark or exclamation mark, closing quotes, white space, and then the beginning of a
# sentence, but not after a single capital ("George W. Bush") or a common title.
_SENTENCE = re.compile(
    r"(?<![A-Z]\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<=[.!?])"
    r"([\"'\u201d\u2019)]*)\s+(?=[\"'\u201c\u2018(]?[A-Z0-9£$€])"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a document in order; a blank line always ends a sentence."""
    sentences = []
    for paragraph in _PARAGRAPH.split(text):
        flat = " ".join(paragraph.split())
        sentences += [sentence for sentence in _split_paragraph(flat) if sentence]
    return sentences


def _split_paragraph(flat: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE.finditer(flat):
        yield flat[start : end.end(1)]
        start = end.end()
    yield flat[start:]
