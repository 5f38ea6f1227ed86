"""Documents into sentences."""

from __future__ import annotations

import pytest

from headway.data.corpus.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four.", ["One.", "Two!", "Three?", "Four."]),
        ("Title\n\nFirst sentence. Second.", ["Title", "First sentence.", "Second."]),
        ("Windows\r\n\r\nlines. End.", ["Windows", "lines.", "End."]),
        ("Wrapped over\ntwo lines. Next.", ["Wrapped over two lines.", "Next."]),
        ("George W. Bush met Mr. Smith. They spoke.", ["George W. Bush met Mr. Smith.", "They spoke."]),
        ("It grew 3.5 percent. 4 more follow.", ["It grew 3.5 percent.", "4 more follow."]),
        ("He said no. but went.", ["He said no. but went."]),
        ("Prices rose. £5 more.", ["Prices rose.", "£5 more."]),
        ("", []),
        (" \n \n ", []),
    ],
)
def test_a_text_is_split_where_sentences_end(text, sentences):
    assert split_sentences(text) == sentences


def test_no_word_is_lost_or_doubled():
    text = 'He said "Stop." She did not! "Why?" asked Dr. Who. Then (at last) it ended.\n\nNew paragraph'
    assert " ".join(split_sentences(text)).split() == text.split()
