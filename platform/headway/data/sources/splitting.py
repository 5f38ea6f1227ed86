"""Decide which documents are held out, by a hash of each text, so that all steps agree without a list."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from headway.data.sources.documents import Document


def text_key(text: str) -> bytes:
    """A digest that is the same for texts that differ only in white space or case."""
    return hashlib.blake2b(" ".join(text.split()).lower().encode(), digest_size=16).digest()


def unit_hash(key: bytes, salt: str) -> float:
    """A number in [0, 1) that looks random, but is always the same for a key and a salt."""
    digest = hashlib.blake2b(key, digest_size=8, salt=salt.encode()[:16]).digest()
    return int.from_bytes(digest, "big") / 2**64


def drop_duplicates(documents: Iterable[Document]) -> list[Document]:
    """The first of each set of documents with the same text."""
    unique: dict[bytes, Document] = {}
    for document in documents:
        unique.setdefault(text_key(document.text), document)
    return list(unique.values())


def split_documents(
    documents: Iterable[Document], fraction: float, salt: str = "held-out"
) -> tuple[list[Document], list[Document]]:
    """Documents to keep, and documents to hold out, about `fraction` of all; duplicates stay together."""
    kept: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        target = held_out if unit_hash(text_key(document.text), salt) < fraction else kept
        target.append(document)
    return kept, held_out
