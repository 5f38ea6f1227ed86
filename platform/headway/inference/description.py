"""What the encoder in a folder can do, read from its files without loading weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headway.config.base import ConfigError
from headway.inference.answers import AnswerSettings

Ability = Literal["embeddings", "attention", "classify", "rerank", "fill-mask", "tokens", "answer"]

_HEADS: dict[str, Ability] = {
    "ForSequenceClassification": "classify",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "answer",
}
_POSITIONS_START_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")


@dataclass(frozen=True)
class Description:
    """An encoder as a client sees it.

    Attributes:
        architecture: name of the transformers class.
        abilities: what can be asked of it.
        labels: names of its classes, in the order of the head's outputs.
        max_length: tokens of an input at most, special ones included.
        hidden_size: numbers in an embedding.
        layers: attention layers.
        heads: attention heads in each layer.
        pooling: what makes the embedding: the mean of all tokens, or the first one.
        multi_label: whether classes are independent of each other.
        answers: how answers to questions are decoded.
    """

    architecture: str
    abilities: tuple[Ability, ...]
    labels: tuple[str, ...]
    max_length: int
    hidden_size: int
    layers: int
    heads: int
    pooling: Literal["mean", "cls"]
    multi_label: bool
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
        ConfigError: the folder holds no encoder, or its weights are not in safetensors.
    """
    config = _read(folder / "config.json")
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
    abilities: tuple[Ability, ...] = ("embeddings", "attention", "rerank", *([head] if head else []))
    return Description(
        architecture=architecture,
        abilities=abilities,
        labels=labels,
        max_length=_max_length(folder, config),
        hidden_size=int(config.get("hidden_size") or config["dim"]),
        layers=int(config.get("num_hidden_layers") or config["n_layers"]),
        heads=int(config.get("num_attention_heads") or config["n_heads"]),
        pooling="cls"
        if _read(folder / "1_Pooling" / "config.json").get("pooling_mode_cls_token")
        else "mean",
        multi_label=config.get("problem_type") == "multi_label_classification",
        answers=AnswerSettings.of_config(config),
    )


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    return tuple(names[key] for key in sorted(names, key=int))


def _max_length(folder: Path, config: dict[str, Any]) -> int:
    positions = int(config.get("max_position_embeddings", 512))
    if config.get("model_type") in _POSITIONS_START_AFTER_PADDING:
        positions -= int(config.get("pad_token_id", 1)) + 1
    limits = [positions]
    for file, key in (
        ("tokenizer_config.json", "model_max_length"),
        ("sentence_bert_config.json", "max_seq_length"),
    ):
        limits.append(int(_read(folder / file).get(key) or positions))
    return min(limits)


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"model: {str(path)!r} is not valid JSON: {error}") from error
