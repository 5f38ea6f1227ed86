"""Batches of what tasks are learnt from besides whole texts: labelled words, passages, groups of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from headway.data.batches import DealtBatches, Example
from headway.data.framing import Framing
from headway.data.sampling import BatchSizes, Draw

_NOTHING = np.empty(0, np.int64)


class WordBatches(DealtBatches):
    """Sentences of words; the first piece of each word carries its label (Devlin et al. 2018, section 5.3).

    Words that begin beyond `max_length` tokens are cut off, and have no prediction.
    """

    def __init__(
        self,
        words: Sequence[Sequence[np.ndarray]],
        labels: Sequence[np.ndarray],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Take sentences, each the pieces of its words, and int64 labels of shape (words,) of each."""
        self.framing = Framing.of(tokenizer)
        room = max_length - self.framing.single
        self.texts = [np.concatenate(row)[:room] for row in words]
        self.first_pieces: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        for row, labels_of_row in zip(words, labels, strict=True):
            sizes = np.asarray([len(word) for word in row])
            starts = np.cumsum(sizes) - sizes
            kept = starts < room
            self.first_pieces.append(starts[kept] + len(self.framing.before))
            self.labels.append(labels_of_row[kept])
        lengths = np.asarray([len(text) for text in self.texts]) + self.framing.single
        super().__init__(lengths, BatchSizes(batch_size), seed)

    def sequence(self, draw: Draw) -> Example:
        """The row's sentence; the same in every epoch."""
        ids, types = self.framing.one(self.texts[draw.row])
        return Example(ids, types, 0, self.first_pieces[draw.row], self.labels[draw.row], draw.row)


class Window(NamedTuple):
    """A stretch of a passage that fits beside its question.

    Attributes:
        row: the question it is of.
        start: the first of its tokens in the passage.
        stop: one past its last.
        answer: where the answer's first and last token lie in the framed sequence; (0, 0), the first
            token, where it holds no whole answer.
    """

    row: int
    start: int
    stop: int
    answer: tuple[int, int]


class PassageBatches(DealtBatches):
    """Questions with windows of their passages; each window is a row."""

    def __init__(
        self,
        pairs: Sequence[tuple[np.ndarray, np.ndarray]],
        answers: Sequence[tuple[int, int] | None],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        stride: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Take (question, passage) tokens, and the first and last token of each answer in its passage."""
        self.framing = Framing.of(tokenizer)
        longest_question = max_length - self.framing.pair - stride - 1
        self.pairs = [(question[:longest_question], passage) for question, passage in pairs]
        self.windows = [
            window
            for row, ((question, passage), answer) in enumerate(zip(self.pairs, answers, strict=True))
            for window in self._windows(row, question, passage, answer, max_length, stride)
        ]
        lengths = np.asarray([len(self.pairs[w.row][0]) + w.stop - w.start for w in self.windows])
        lengths += self.framing.pair
        super().__init__(lengths, BatchSizes(batch_size), seed)

    def offset(self, row: int) -> int:
        """Where the passage begins in the framed sequences of a question."""
        return len(self.framing.before) + len(self.pairs[row][0]) + len(self.framing.between)

    def _windows(
        self,
        row: int,
        question: np.ndarray,
        passage: np.ndarray,
        answer: tuple[int, int] | None,
        max_length: int,
        stride: int,
    ) -> list[Window]:
        room = max_length - self.framing.pair - len(question)
        windows: list[Window] = []
        start = 0
        while True:
            stop = min(start + room, len(passage))
            place = (0, 0)
            if answer is not None and start <= answer[0] and answer[1] < stop:
                shift = self.offset(row) - start
                place = (answer[0] + shift, answer[1] + shift)
            windows.append(Window(row, start, stop, place))
            if stop == len(passage):
                return windows
            start = stop - stride

    def sequence(self, draw: Draw) -> Example:
        """The window; the same in every epoch."""
        window = self.windows[draw.row]
        question, passage = self.pairs[window.row]
        ids, types = self.framing.two(question, passage[window.start : window.stop])
        return Example(ids, types, np.asarray(window.answer), _NOTHING, _NOTHING, draw.row)


class GroupBatches(DealtBatches):
    """Groups of texts that belong together, each text a sequence of its own: (anchor, positive, …)."""

    def __init__(
        self,
        groups: Sequence[Sequence[np.ndarray]],
        scores: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Take groups of texts, all of the same size, and float32 scores of shape (groups,)."""
        self.groups = groups
        self.scores = scores
        self.framing = Framing.of(tokenizer)
        self.room = max_length - self.framing.single
        lengths = np.asarray(
            [sum(min(len(text), self.room) + self.framing.single for text in group) for group in groups]
        )
        super().__init__(lengths, BatchSizes(batch_size), seed)

    def sequences(self, draw: Draw) -> list[Example]:
        """The row's texts; the same in every epoch."""
        score = self.scores[draw.row]
        framed = [self.framing.one(text[: self.room]) for text in self.groups[draw.row]]
        return [Example(ids, types, score, _NOTHING, _NOTHING, draw.row) for ids, types in framed]
