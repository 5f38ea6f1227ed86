"""Extractive question answering: questions answered by a span of a passage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.sources.rows import Row, text_of
from headway.data.task_batches import PassageBatches
from headway.engine.training.task_objectives import AnswerObjective
from headway.inference.answers import AnswerSettings, ScoredWindow, best_answers
from headway.tasks.item import Item, Splits
from headway.tasks.rows import Rows
from headway.tasks.squad import exact_match, token_f1
from headway.tasks.task import Task


class QuestionAnswering(Task):
    """Learns the first and last token of an answer. Judged by exact match and F1 (Rajpurkar et al. 2016).

    A question without an answer is answered by the first token, as in SQuAD 2.0.
    """

    kind = "question-answering"
    primary = "f1"
    auto_class = AutoModelForQuestionAnswering

    @classmethod
    def columns(cls, config: Any) -> list[str]:
        """See `Task`."""
        return [config.question_column, config.text_column, config.answers_column]

    @classmethod
    def item(cls, config: Any, row: Row) -> Item:
        """See `Task`."""
        question, passage = text_of(row, config.question_column), text_of(row, config.text_column)
        answers = row.values[config.answers_column]
        if not isinstance(answers, dict) or not {"text", "answer_start"} <= set(answers):
            raise ConfigError(
                f"{row.origin}: column {config.answers_column!r} must hold `text` and `answer_start`"
            )
        texts, starts = list(answers["text"]), [int(start) for start in answers["answer_start"]]
        for text, start in zip(texts, starts, strict=True):
            if passage[start : start + len(text)] != text:
                raise ConfigError(
                    f"{row.origin}: the passage does not have the answer {text!r:.60} at character {start}"
                )
        return Item((question, passage), {"texts": texts, "starts": starts}, [passage], row.origin)

    @classmethod
    def check(cls, splits: Splits) -> None:
        """See `Task`: some training question has an answer."""
        if not any(item.target["texts"] for item in splits["train"]):
            raise ConfigError("task: no training question has an answer")

    @classmethod
    def store(cls, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """See `Task`; the tokens of question and passage, and their offsets in characters."""
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        flat = backend.encode_batch([text for item in items for text in item.texts], add_special_tokens=False)
        unknown = tokenizer.unk_token_id or 0
        tokens = [np.asarray(encoding.ids or [unknown], np.int32) for encoding in flat]
        offsets = [np.asarray(encoding.offsets or [(0, 0)], np.int32).ravel() for encoding in flat]
        pairs = range(0, len(flat), 2)
        return {
            "tokens": [tokens[i : i + 2] for i in pairs],
            "offsets": [offsets[i : i + 2] for i in pairs],
        }

    def batches(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, seed: int = 0
    ) -> PassageBatches:
        """See `Task`; each window of a passage is a row."""
        return PassageBatches(
            [(question, passage) for question, passage in rows.tokens],
            [_first_answer(target, _offsets(rows, row)) for row, target in enumerate(rows.targets)],
            tokenizer,
            max_length=self.max_length,
            stride=int(self.settings["stride"]),
            batch_size=batch_size,
            seed=seed,
        )

    def row_keys(self, rows: Rows, batches: PassageBatches) -> list[str]:
        """See `Task`; each row is a window of a passage."""
        return ["\n".join([str(window.start), *rows.texts[window.row]]) for window in batches.windows]

    def model_settings(self) -> dict[str, Any]:
        """See `Task`; the head has two outputs, whatever head the encoder had."""
        return {"num_labels": 2}

    def save(self, model: Any, tokenizer_folder: Path, folder: Path) -> None:
        """See `Task`; the settings of decoding go with the model, for whoever serves it."""
        for name, value in self.answer_settings.for_config().items():
            setattr(model.config, name, value)
        super().save(model, tokenizer_folder, folder)

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> AnswerObjective:
        """See `Task`."""
        return AnswerObjective(model)

    @cached_property
    def answer_settings(self) -> AnswerSettings:
        """How answers are decoded; "" is one of them if some training question has no answer."""
        may_be_empty = any(not target["texts"] for target in self.split("train").targets)
        return AnswerSettings(int(self.settings["max_answer_length"]), may_be_empty)

    def answers(self, rows: Rows, predictions: list[np.ndarray], batches: PassageBatches) -> list[str]:
        """The best answer to each question over all windows; "" if it has none."""
        windows: list[list[ScoredWindow]] = [[] for _ in range(len(rows))]
        for window, scores in zip(batches.windows, predictions, strict=True):
            offsets = _offsets(rows, window.row)[window.start : window.stop]
            windows[window.row].append(ScoredWindow(scores, batches.offset(window.row), offsets))
        answers = [
            best_answers(texts[1], scored, self.answer_settings)
            for texts, scored in zip(rows.texts, windows, strict=True)
        ]
        return [best[0].text if best else "" for best in answers]

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """Exact match and F1, both between 0 and 1."""
        answers = self.answers(rows, predictions, batches)
        pairs = [(text, target["texts"]) for text, target in zip(answers, rows.targets, strict=True)]
        return {
            "exact_match": float(np.mean([exact_match(*pair) for pair in pairs])),
            "f1": float(np.mean([token_f1(*pair) for pair in pairs])),
        }


def _offsets(rows: Rows, row: int) -> np.ndarray:
    """Where each token of a row's passage begins and ends in the text, int32, shape (tokens, 2)."""
    return rows.stores["offsets"][row][1].reshape(-1, 2)


def _first_answer(target: Any, offsets: np.ndarray) -> tuple[int, int] | None:
    """Indices of the first and the last token of the first right answer; None if there is no answer."""
    if not target["texts"]:
        return None
    begin = target["starts"][0]
    end = begin + len(target["texts"][0])
    inside = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < end))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None
