"""Settings of tasks, one class for each kind; the code of a kind is in `tasks/`, in the file of its name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from headway.config.base import Fraction, Positive
from headway.config.presets import expand_preset
from headway.config.sources import SourceConfig


class TaskConfig(SourceConfig):
    """What all tasks have in common: where rows come from, and how they are split.

    Rows with the same text, passage or query stay together: all are trained on, or all are held out. Each
    class has rows in every split, if it has enough of them.
    """

    scores: ClassVar[tuple[str, ...]]

    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    validation: Fraction = Field(
        0.15, gt=0.0, description="fraction of the training rows that is used for validation"
    )
    validation_source: str | None = Field(
        None, min_length=1, description="a separate source of validation rows"
    )
    validation_split: str | None = Field(
        None, description="the split with validation rows, of a `datasets` source"
    )
    group_column: str | None = Field(
        None,
        min_length=1,
        description="column whose equal values keep rows together, instead of equal texts",
    )
    test_source: str | None = Field(None, min_length=1, description="a separate source of held-out rows")
    test_split: str | None = Field(None, description="the split with held-out rows, of a `datasets` source")

    @property
    def measures(self) -> list[str]:
        """The names of what is measured on validation rows."""
        return ["loss", *self.scores]


class ClassificationTask(TaskConfig):
    """Texts, or pairs of texts, with one label each."""

    scores: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")

    kind: Literal["classification"] = "classification"
    pair_column: str | None = Field(None, description="column with the second text of a pair")
    label_column: str = "label"
    labels_per_class: Positive | None = Field(
        None, description="train on this many rows of each label; if not set, on all"
    )


class MultiLabelTask(TaskConfig):
    """Texts, or pairs of texts, with any number of labels each."""

    scores: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "subset_accuracy", "mean_average_precision")

    kind: Literal["multi-label"] = "multi-label"
    pair_column: str | None = Field(None, description="column with the second text of a pair")
    label_column: str = Field(
        "labels", description="column with a list of labels, or with labels in one text"
    )
    separator: str = Field(",", min_length=1, description="what stands between labels in one text")
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="lowest score at which a label is predicted"
    )


class RegressionTask(TaskConfig):
    """Texts, or pairs of texts, with a number each."""

    scores: ClassVar[tuple[str, ...]] = ("spearman", "pearson", "rmse")

    kind: Literal["regression"] = "regression"
    pair_column: str | None = Field(None, description="column with the second text of a pair")
    label_column: str = "label"


class TokenTask(TaskConfig):
    """Words with a label each; entities are labelled B-…, I-… and O."""

    scores: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "accuracy")

    kind: Literal["tokens"] = "tokens"
    text_column: str = Field(
        "tokens", description="column with a list of words, or with words separated by spaces"
    )
    label_column: str = Field(
        "ner_tags", description="column with a label for each word, as a list or separated by spaces"
    )


class QuestionAnsweringTask(TaskConfig):
    """Questions answered by a span of a passage, in the format of SQuAD, version 1 or 2."""

    scores: ClassVar[tuple[str, ...]] = ("exact_match", "f1")

    kind: Literal["question-answering"] = "question-answering"
    text_column: str = Field("context", description="column with the passage")
    question_column: str = "question"
    answers_column: str = Field(
        "answers", description="column with the lists `text` and `answer_start`, which may be empty"
    )
    max_length: Annotated[int, Field(ge=8, le=8192)] = 384
    stride: Positive = Field(128, description="tokens by which consecutive windows of a passage overlap")
    max_answer_length: Positive = Field(30, description="maximum number of tokens in an answer")

    @model_validator(mode="after")
    def _windows_advance(self) -> QuestionAnsweringTask:
        if self.stride >= self.max_length // 2:
            raise ValueError(f"stride {self.stride} should be below half of max_length, {self.max_length}")
        return self


class EmbeddingTask(TaskConfig):
    """Pairs of texts that mean the same, or are scored by how much they do."""

    scores: ClassVar[tuple[str, ...]] = ("mrr", "accuracy")

    kind: Literal["embeddings"] = "embeddings"
    text_column: str = "anchor"
    pair_column: str = "positive"
    negative_column: str | None = Field(None, description="column with a text that does not match the first")
    score_column: str | None = Field(None, description="column with the similarity of a pair")
    loss: Literal["multiple-negatives", "cosine"] = "multiple-negatives"
    min_score: float | None = Field(
        None, description="multiple-negatives trains on pairs with at least this score; if not set, on all"
    )

    @model_validator(mode="after")
    def _scored(self) -> EmbeddingTask:
        if self.score_column is None and (self.loss == "cosine" or self.min_score is not None):
            raise ValueError("loss cosine and min_score need a score_column")
        if self.loss == "cosine" and self.min_score is not None:
            raise ValueError("min_score does nothing with loss cosine, which trains on all pairs")
        return self

    @property
    def measures(self) -> list[str]:
        """See `TaskConfig`; pairs with scores are ranked, others are found."""
        return super().measures if self.score_column is None else ["loss", "spearman", "pearson"]


class RerankingTask(TaskConfig):
    """Queries with passages that answer them or do not."""

    scores: ClassVar[tuple[str, ...]] = ("mrr_at_10", "ndcg_at_10", "map")

    kind: Literal["reranking"] = "reranking"
    text_column: str = Field("query", description="column with the query that passages are ranked for")
    pair_column: str = "passage"
    label_column: str = Field(
        "label", description="column with 1 for a passage that answers the query, otherwise 0"
    )
    max_length: Annotated[int, Field(ge=8, le=8192)] = 256


def _kind(task: Any) -> str:
    kind = task.get("kind", "classification") if isinstance(task, dict) else getattr(task, "kind", None)
    return str(kind)


AnyTask = Annotated[
    Annotated[ClassificationTask, Tag("classification")]
    | Annotated[MultiLabelTask, Tag("multi-label")]
    | Annotated[RegressionTask, Tag("regression")]
    | Annotated[TokenTask, Tag("tokens")]
    | Annotated[QuestionAnsweringTask, Tag("question-answering")]
    | Annotated[EmbeddingTask, Tag("embeddings")]
    | Annotated[RerankingTask, Tag("reranking")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message="Input should be 'classification', 'multi-label', 'regression', 'tokens', "
        "'question-answering', 'embeddings' or 'reranking'",
    ),
    BeforeValidator(expand_preset),
]
"""Any task's settings; `kind` says which, and `preset` fills in those of a known benchmark."""
