"""Which documents are held out: decided by each text itself, so every step agrees without a list."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from headway.data.sources.documents import Document


def text_key(text: str) -> bytes:
    """A digest that is the same for texts that differ in white space or case only."""
    return hashlib.blake2b(" ".join(text.split()).lower().encode(), digest_size=16).digest()


def unit_hash(key: bytes, salt: str) -> float:
    """A number in [0, 1) that looks random and is always the same for the same key and salt."""
    digest = hashlib.blake2b(key, digest_size=8, salt=salt.encode()[:16]).digest()
    return int.from_bytes(digest, "big") / 2**64


def drop_duplicates(documents: Iterable[Document]) -> list[Document]:
    """The first of each set of documents with the same text."""
    unique: dict[bytes, Document] = {}
    for document in documents:
        unique.setdefault(text_key(document.text), document)
    return list(unique.values())


def split_documents(
    documents: Iterable[Document], share: float, salt: str = "held-out"
) -> tuple[list[Document], list[Document]]:
    """Documents kept and documents held out, about `share` of them; duplicates never part."""
    kept: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        target = held_out if unit_hash(text_key(document.text), salt) < share else kept
        target.append(document)
    return kept, held_out
