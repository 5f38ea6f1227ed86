"""The settings of tasks, one class a kind; the code of each is in `tasks/`, in a file of the kind's name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from headway.config.base import Fraction, Positive, SourceConfig
from headway.config.presets import expand_preset


class TaskConfig(SourceConfig):
    """What all tasks share: where rows come from, and how they are split.

    Rows that share a text, or a question's passage, or a query, never part: they are all trained on, or
    all held out.
    """

    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    validation: Fraction = Field(0.15, gt=0.0, description="share of the training rows that selects")
    validation_source: str | None = Field(None, min_length=1, description="rows that select, if kept apart")
    validation_split: str | None = Field(None, description="likewise, a split of a `datasets` source")
    test_source: str | None = Field(None, min_length=1, description="held-out rows, if kept apart")
    test_split: str | None = Field(None, description="likewise, a split of a `datasets` source")


class ClassificationTask(TaskConfig):
    """Texts, or pairs of texts, with one label each."""

    kind: Literal["classification"] = "classification"
    pair_column: str | None = Field(None, description="the second text of a pair")
    label_column: str = "label"
    labels_per_class: Positive | None = Field(None, description="train on so many only; all when not set")


class MultiLabelTask(TaskConfig):
    """Texts, or pairs of texts, with any number of labels each."""

    kind: Literal["multi-label"] = "multi-label"
    pair_column: str | None = Field(None, description="the second text of a pair")
    label_column: str = Field("labels", description="a list, or text with a separator between labels")
    separator: str = Field(",", min_length=1, description="between the labels of a text column")
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.5, description="least score of a label")


class RegressionTask(TaskConfig):
    """Texts, or pairs of texts, with a number each."""

    kind: Literal["regression"] = "regression"
    pair_column: str | None = Field(None, description="the second text of a pair")
    label_column: str = "label"


class TokenTask(TaskConfig):
    """Words with a label each; entities are written B-…, I-… and O."""

    kind: Literal["tokens"] = "tokens"
    text_column: str = Field("tokens", description="a list of words, or text with spaces between them")
    label_column: str = Field("ner_tags", description="a label a word: a list, or text with spaces")


class QuestionAnsweringTask(TaskConfig):
    """Questions answered by a span of a passage, in the format of SQuAD, version 1 or 2."""

    kind: Literal["question-answering"] = "question-answering"
    text_column: str = Field("context", description="the passage")
    question_column: str = "question"
    answers_column: str = Field("answers", description="with `text` and `answer_start`, lists; may be empty")
    max_length: Annotated[int, Field(ge=8, le=8192)] = 384
    stride: Positive = Field(128, description="tokens that a window of a passage shares with the next")
    max_answer_length: Positive = Field(30, description="tokens of an answer at most")

    @model_validator(mode="after")
    def _windows_advance(self) -> QuestionAnsweringTask:
        if self.stride >= self.max_length // 2:
            raise ValueError(f"stride {self.stride} should be below half of max_length, {self.max_length}")
        return self


class EmbeddingTask(TaskConfig):
    """Pairs of texts that mean the same, or are scored by how much they do."""

    kind: Literal["embeddings"] = "embeddings"
    text_column: str = "anchor"
    pair_column: str = "positive"
    negative_column: str | None = Field(None, description="a text that does not fit the first")
    score_column: str | None = Field(None, description="how alike the texts of a pair are")
    loss: Literal["multiple-negatives", "cosine"] = "multiple-negatives"
    min_score: float | None = Field(
        None, description="multiple-negatives trains on pairs with at least this score; on all if not set"
    )

    @model_validator(mode="after")
    def _scored(self) -> EmbeddingTask:
        if self.score_column is None and (self.loss == "cosine" or self.min_score is not None):
            raise ValueError("loss cosine and min_score need a score_column")
        return self


class RerankingTask(TaskConfig):
    """Queries with passages that answer them or do not."""

    kind: Literal["reranking"] = "reranking"
    text_column: str = Field("query", description="what passages are ranked for")
    pair_column: str = "passage"
    label_column: str = Field("label", description="1 for a passage that answers the query, else 0")
    max_length: Annotated[int, Field(ge=8, le=8192)] = 256


def _kind(task: Any) -> str:
    kind = task.get("kind", "classification") if isinstance(task, dict) else getattr(task, "kind", None)
    return f"{kind}Task"


# A tag that ends in "Task" is left out of the field's name in a message.
AnyTask = Annotated[
    Annotated[ClassificationTask, Tag("classificationTask")]
    | Annotated[MultiLabelTask, Tag("multi-labelTask")]
    | Annotated[RegressionTask, Tag("regressionTask")]
    | Annotated[TokenTask, Tag("tokensTask")]
    | Annotated[QuestionAnsweringTask, Tag("question-answeringTask")]
    | Annotated[EmbeddingTask, Tag("embeddingsTask")]
    | Annotated[RerankingTask, Tag("rerankingTask")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message="'classification', 'multi-label', 'regression', 'tokens', "
        "'question-answering', 'embeddings' or 'reranking'",
    ),
    BeforeValidator(expand_preset),
]
"""Any task's settings; `kind` says which, and `preset` fills in those of a known benchmark."""
