"""Which documents are held out."""

from __future__ import annotations

import random

from headway.data.sources.documents import Document
from headway.data.sources.splitting import drop_duplicates, split_documents, text_key, unit_hash


def documents(count: int) -> list[Document]:
    return [Document(f"Text number {i}.", None, f"row {i}") for i in range(count)]


def test_about_the_share_is_held_out():
    kept, held_out = split_documents(documents(4000), 0.2)
    assert len(kept) + len(held_out) == 4000
    # Four standard deviations of a binomial with 4000 draws.
    assert abs(len(held_out) - 800) < 4 * (4000 * 0.2 * 0.8) ** 0.5


def test_duplicates_never_straddle_the_split():
    """Copies that differ in case or white space fall to the same side, with or without being dropped."""
    originals = documents(300)
    copies = [Document(f"  {d.text.upper()}\n", None, "copy") for d in originals]
    kept, held_out = split_documents(originals + copies, 0.3)
    assert not {text_key(d.text) for d in kept} & {text_key(d.text) for d in held_out}
    assert len(drop_duplicates(originals + copies)) == 300


def test_a_document_stays_where_it_is_whatever_else_there_is():
    everything = documents(200)
    held_out = {d.text for d in split_documents(everything, 0.25)[1]}
    shuffled = random.Random(0).sample(everything, 120)
    assert {d.text for d in split_documents(shuffled, 0.25)[1]} == held_out & {d.text for d in shuffled}


def test_a_larger_share_holds_out_more_and_gives_nothing_back():
    small = {d.text for d in split_documents(documents(500), 0.1)[1]}
    large = {d.text for d in split_documents(documents(500), 0.3)[1]}
    assert small < large


def test_splits_with_another_salt_are_independent():
    rest, test = split_documents(documents(4000), 0.5)
    train, validation = split_documents(rest, 0.5, salt="validation")
    assert abs(len(validation) / len(rest) - 0.5) < 0.06
    assert len(train) + len(validation) + len(test) == 4000


def test_the_first_of_duplicates_is_kept_in_order():
    actual = drop_duplicates([Document("b", "x", "1"), Document("a", "x", "2"), Document("B ", "y", "3")])
    assert [d.origin for d in actual] == ["1", "2"]


def test_hashes_fill_the_unit_interval():
    values = [unit_hash(text_key(d.text), "s") for d in documents(2000)]
    assert 0 <= min(values) < 0.01
    assert 0.99 < max(values) < 1
    assert abs(sum(values) / 2000 - 0.5) < 0.03
