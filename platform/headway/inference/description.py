"""What the encoder in a folder can do, read from its files without loading weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headway.config.base import ConfigError
from headway.engine.formats.packed import is_packed
from headway.inference.answers import AnswerSettings
from headway.inference.sentence_modules import (
    SentenceModules,
    activation_named,
    read_json,
    read_sentence_modules,
    transformer_settings,
)

Ability = Literal["embeddings", "attention", "classify", "rerank", "fill-mask", "tokens", "answer"]

Kind = Literal["label", "labels", "score", "entities", "masks", "answers", "embedding"]
"""What a model's answer is about; `Predictor.rows` says what it holds."""

_HEADS: dict[str, Ability] = {
    "ForSequenceClassification": "classify",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "answer",
}
_CONFIG_KEY = "task_specific_params"
_TASK = "text-classification"
_DEFAULT_THRESHOLD = 0.5
_POSITIONS_START_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")


@dataclass(frozen=True)
class Description:
    """An encoder as a client sees it.

    Attributes:
        architecture: name of the transformers class.
        abilities: what can be asked of it.
        labels: names of its classes, in the order of the head's outputs.
        max_length: tokens of an input at most, special ones included.
        hidden_size: numbers in a token's last hidden state.
        embedding_size: numbers in an embedding.
        layers: attention layers; none if it is a table of token vectors.
        heads: attention heads in each layer.
        sentence: what makes the embedding of the tokens' hidden states.
        multi_label: whether classes are independent of each other.
        threshold: the lowest probability at which one of several independent classes is predicted.
        score_activation: what the score of a head with one output goes through: a class of PyTorch's.
        answers: how answers to questions are decoded.
    """

    architecture: str
    abilities: tuple[Ability, ...]
    labels: tuple[str, ...]
    max_length: int
    hidden_size: int
    embedding_size: int
    layers: int
    heads: int
    sentence: SentenceModules
    multi_label: bool
    threshold: float
    score_activation: str
    answers: AnswerSettings

    @property
    def main_operation(self) -> Literal["classify", "embed"]:
        """What the model is for: classes if it has a head for them, else embeddings."""
        return "classify" if "classify" in self.abilities else "embed"

    @property
    def scores_pairs(self) -> bool:
        """Whether it is a cross-encoder, whose one output says how well two texts fit together."""
        return "classify" in self.abilities and len(self.labels) == 1


def describe(folder: Path) -> Description:
    """Read an encoder's configuration.

    Raises:
        ConfigError: the folder holds no encoder, its weights are not in safetensors, or its embeddings are
            made in a way that Headway does not know.
    """
    config = read_json(folder / "config.json")
    if not config:
        raise ConfigError(
            f"model: {str(folder)!r} is not a folder with a transformers model (no config.json)"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model: {str(folder)!r} has no .safetensors file; other formats can run code, so none is loaded"
        )
    architecture = (config.get("architectures") or ["unknown"])[0]
    head = next((ability for suffix, ability in _HEADS.items() if architecture.endswith(suffix)), None)
    labels = _labels(config) if head in ("classify", "tokens") else ()
    sentence = read_sentence_modules(folder)
    hidden_size = int(_first_of(config, "hidden_size", "dim"))
    layers = int(_first_of(config, "num_hidden_layers", "n_layers"))
    # It is computed by transformers' own layers, from floats.
    attention: tuple[Ability, ...] = ("attention",) if layers and not is_packed(folder) else ()
    abilities: tuple[Ability, ...] = ("embeddings", *attention, "rerank", *([head] if head else []))
    return Description(
        architecture=architecture,
        abilities=abilities,
        labels=labels,
        max_length=_max_length(folder, config),
        hidden_size=hidden_size,
        embedding_size=sentence.width(hidden_size),
        layers=layers,
        heads=int(_first_of(config, "num_attention_heads", "n_heads")),
        sentence=sentence,
        multi_label=config.get("problem_type") == "multi_label_classification",
        threshold=_threshold(config),
        score_activation=_score_activation(folder, config),
        answers=AnswerSettings.of_config(config),
    )


def _first_of(config: dict[str, Any], *names: str) -> Any:
    """The value of the first of some names that a configuration has; DistilBERT's differ from BERT's."""
    return next(config[name] for name in names if name in config)


def kind_of(description: Description) -> Kind:
    """What a model's head answers; an encoder without one gives embeddings."""
    if "classify" in description.abilities:
        if len(description.labels) == 1:
            return "score"
        return "labels" if description.multi_label else "label"
    heads: dict[str, Kind] = {"tokens": "entities", "fill-mask": "masks", "answer": "answers"}
    return next((kind for ability, kind in heads.items() if ability in description.abilities), "embedding")


def threshold_for_config(threshold: float) -> dict[str, Any]:
    """What to add to a `config.json`, so that whoever predicts with the model knows the threshold."""
    return {_CONFIG_KEY: {_TASK: {"threshold": threshold}}}


def _threshold(config: dict[str, Any]) -> float:
    stored = (config.get(_CONFIG_KEY) or {}).get(_TASK) or {}
    return float(stored.get("threshold", _DEFAULT_THRESHOLD))


def _score_activation(folder: Path, config: dict[str, Any]) -> str:
    """What sentence-transformers' cross-encoders apply to their score; nothing to that of other models.

    It is written beside the model since release 5.4, in the model's own configuration since 4.0, and under
    another name before, but only if it is not the sigmoid.
    """
    beside = read_json(folder / "config_sentence_transformers.json")
    theirs = beside if beside.get("model_type") == "CrossEncoder" else config.get("sentence_transformers")
    stated = (theirs or {}).get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if stated is not None:
        return activation_named(folder, "activation_fn", stated)
    is_sigmoid = theirs is not None or config.get("problem_type") == "multi_label_classification"
    return "Sigmoid" if is_sigmoid else "Identity"


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    return tuple(names[key] for key in sorted(names, key=int))


def _max_length(folder: Path, config: dict[str, Any]) -> int:
    positions = int(config.get("max_position_embeddings", 512))
    if config.get("model_type") in _POSITIONS_START_AFTER_PADDING:
        positions -= int(config.get("pad_token_id", 1)) + 1
    stated = read_json(folder / "tokenizer_config.json").get("model_max_length")
    limit = transformer_settings(folder).get("max_seq_length")
    return min(positions, int(stated or positions), int(limit or positions))
