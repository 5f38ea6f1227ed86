"""Split documents into sentences."""

# ruff: noqa: RUF001, letters of other scripts that look like Latin ones

from __future__ import annotations

import pytest

from headway.data.corpus.sentences import spaced_sentences, split_sentences


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


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("ru", ["Мы пришли в 5 ч. вечера.", "Было темно!", "Кто там?", "Потом А. С. Пушкин написал письмо."]),
        ("ru", ["мы пришли домой.", "было темно!", "кто там?", "никого."]),
        ("ar", ["ذهبت إلى السوق اليوم.", "هل اشتريت شيئا؟", "نعم، اشتريت الخبز!", "كان لذيذا."]),
        ("es", ["Vino ayer.", "¿Cómo estás?", "¡Qué bien!", "Él se fue.", "Óscar llegó."]),
        ("fr", ["Il est parti.", "École fermée.", "Élise dit non."]),
        ("de", ["Das kostet z. B. 3 Euro.", "Äpfel sind gut.", "Dr. Müller kam am 3. Oktober."]),
        ("hi", ["यह एक किताब है।", "वह घर गया।", "क्या तुम आओगे?"]),
        ("en", ["the cat sat on the mat.", "was it asleep?", "no!", "mr. smith came at 3.5 p.m. and left."]),
    ],
)
def test_sentences_of_every_script_and_case_are_found(language, sentences):
    assert split_sentences(" ".join(sentences), language) == sentences


@pytest.mark.parametrize("language", ["zh", "en"])
def test_sentences_without_spaces_between_them_are_found(language):
    sentences = ["今天天气很好。", "我们去公园吧！", "你想去吗？", "他说好。"]
    assert split_sentences("".join(sentences), language) == sentences


def test_scripts_do_not_depend_on_the_language():
    sentences = ["Было темно!", "هل اشتريت شيئا؟", "वह घर गया।", "¿Cómo estás?", "École fermée."]
    assert split_sentences(" ".join(sentences)) == sentences


def test_no_word_is_lost_or_doubled():
    text = 'He said "Stop." She did not! "Why?" asked Dr. Who. Then (at last) it ended.\n\nNew paragraph'
    assert " ".join(split_sentences(text)).split() == text.split()


@pytest.mark.parametrize(
    ("text", "language", "sentences"),
    [
        (" One.  Two!\nThree? ", "en", ["One.", " Two!", " Three?"]),
        ("Title\n\nFirst sentence. Second.", "en", ["Title", " First sentence.", " Second."]),
        ("你好。世界很大。\n\n真的吗？", "zh", ["你好。", "世界很大。", " 真的吗？"]),
        ("\n\n One.", "en", ["One."]),
    ],
)
def test_a_sentence_keeps_the_space_before_it_if_there_is_one(text, language, sentences):
    assert spaced_sentences(text, language) == sentences
