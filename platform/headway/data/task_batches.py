"""Batches for tasks that do not label whole texts: labelled words, passages, and groups of texts."""

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
    """Sentences whose words have labels, on each word's first piece (Devlin et al. 2018, section 5.3).

    Words that begin beyond `max_length` tokens are cut off, and get no prediction.
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
        """Take the pieces of each sentence's words, and each sentence's int64 labels of shape (words,)."""
        self.framing = Framing.of(tokenizer)
        max_tokens = max_length - self.framing.single
        self.texts = [np.concatenate(row)[:max_tokens] for row in words]
        self.first_pieces: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        for row, labels_of_row in zip(words, labels, strict=True):
            sizes = np.asarray([len(word) for word in row])
            starts = np.cumsum(sizes) - sizes
            kept = starts < max_tokens
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
        row: the index of its question.
        start: index in the passage of its first token.
        stop: index after its last token.
        answer: indices in the framed sequence of the answer's first and last token; (0, 0), the first token,
            if the window does not hold a whole answer.
    """

    row: int
    start: int
    stop: int
    answer: tuple[int, int]


class PassageBatches(DealtBatches):
    """Questions beside windows of their passages; each window is a row."""

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
        """Take (question, passage) tokens, and the indices of each answer's first and last passage token."""
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
        """The index at which passages begin in the framed sequences of a question."""
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
        max_tokens = max_length - self.framing.pair - len(question)
        windows: list[Window] = []
        start = 0
        while True:
            stop = min(start + max_tokens, len(passage))
            position = (0, 0)
            if answer is not None and start <= answer[0] and answer[1] < stop:
                shift = self.offset(row) - start
                position = (answer[0] + shift, answer[1] + shift)
            windows.append(Window(row, start, stop, position))
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
    """Groups of texts that belong together, such as (anchor, positive); each text is a sequence."""

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
        self.max_tokens = max_length - self.framing.single
        lengths = np.asarray(
            [sum(min(len(text), self.max_tokens) + self.framing.single for text in group) for group in groups]
        )
        super().__init__(lengths, BatchSizes(batch_size), seed)
        self.sequences_a_row = len(groups[0])

    def sequences(self, draw: Draw) -> list[Example]:
        """The row's texts; the same in every epoch."""
        score = self.scores[draw.row]
        framed = [self.framing.one(text[: self.max_tokens]) for text in self.groups[draw.row]]
        return [Example(ids, types, score, _NOTHING, _NOTHING, draw.row) for ids, types in framed]
