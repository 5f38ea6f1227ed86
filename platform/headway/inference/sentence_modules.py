"""What sentence-transformers wrote beside an encoder: how its tokens become a vector. No weight is loaded.

`modules.json` lists modules that run one after the other, each with its settings in a folder of its own:

    Transformer → Pooling → Dense → Normalize

What is known is done in this order; a folder that asks for anything else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headway.config.base import ConfigError
from headway.engine.inference.pooling import POOLINGS, Pooling

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "ELU", "LeakyReLU", "Softplus", "Mish")
"""Of `Dense` and of cross-encoders: names of PyTorch's classes, which are made without arguments."""

_OLD_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags that releases before 5.4 wrote; several are laid side by side in this order."""

_DIMENSIONS = ("embedding_dimension", "word_embedding_dimension")
_VECTOR = "sentence_embedding"


class DenseModule(NamedTuple):
    """A product with weights of its own, and a function of each number.

    Attributes:
        folder: with the weights.
        inputs: width of what comes in.
        outputs: width of what goes out.
        bias: whether something is added to the product.
        activation: one of `ACTIVATIONS`.
        residual: what comes in is added to what goes out; by a product of its own if the widths differ.
    """

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str
    residual: bool


class LayerNormModule(NamedTuple):
    """A layer norm with weights of its own."""

    folder: Path
    width: int


class NormalizeModule(NamedTuple):
    """Vectors brought to unit length."""


VectorModule = DenseModule | LayerNormModule | NormalizeModule


class SentenceModules(NamedTuple):
    """What follows an encoder's last hidden states.

    Attributes:
        poolings: ways of pooling, laid side by side.
        vector_modules: what the pooled vector goes through.
    """

    poolings: tuple[Pooling, ...] = ("mean",)
    vector_modules: tuple[VectorModule, ...] = ()

    def width(self, hidden_size: int) -> int:
        """Numbers in a vector."""
        found = hidden_size * len(self.poolings)
        for module in self.vector_modules:
            if isinstance(module, DenseModule):
                found = module.outputs
        return found


def read_sentence_modules(folder: Path) -> SentenceModules:
    """How the vectors of an encoder's folder are made; of one without `modules.json`, by their mean.

    Raises:
        ConfigError: a module, a setting or a file of weights that Headway does not know.
    """
    listed = read_json(folder / "modules.json")
    if not listed:
        if (folder / "1_Pooling").is_dir():
            raise _refused(folder, "there is a folder 1_Pooling, but no modules.json that says its place")
        return SentenceModules()
    names = [str(module["type"]).rpartition(".")[2] for module in listed]
    if any(not str(module["type"]).startswith("sentence_transformers.") for module in listed):
        raise _refused(folder, f"modules.json names code that is not sentence-transformers' own: {names}")
    places = [folder / module["path"] for module in listed]
    if names[0] not in ("Transformer", "StaticEmbedding") or places[0] != folder:
        raise _refused(folder, f"its first module is {names[0]} in {listed[0]['path']!r}, not an encoder")
    _check_prompt(folder)
    if names[0] == "StaticEmbedding":  # which takes the mean itself
        return SentenceModules(vector_modules=_vector_modules(names[1:], places[1:]))
    if len(names) == 1:  # a cross-encoder, whose scores come from its head
        return SentenceModules()
    _check_transformer(folder, transformer_settings(folder))
    if names[1] != "Pooling":
        raise _refused(folder, f"the module {names[1]} is not known; known after an encoder: Pooling")
    return SentenceModules(_poolings(places[1]), _vector_modules(names[2:], places[2:]))


def transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings of the module `Transformer`; earlier releases named the file after the kind of encoder."""
    paths = sorted(folder.glob("sentence_*_config.json"))
    return read_json(paths[0]) if paths else {}


def read_json(path: Path) -> Any:
    """What a JSON file holds; an empty mapping if there is no such file.

    Raises:
        ConfigError: it is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"model: {str(path)!r} is not JSON: {error}") from error


def _check_transformer(folder: Path, settings: Mapping[str, Any]) -> None:
    text = settings.get("modality_config", {}).get("text", {})
    used = (
        ("transformer_task", settings.get("transformer_task"), "feature-extraction"),
        ("module_output_name", settings.get("module_output_name"), "token_embeddings"),
        ("modality_config.text.method", text.get("method"), "forward"),
        ("modality_config.text.method_output_name", text.get("method_output_name"), "last_hidden_state"),
        ("processing_kwargs", settings.get("processing_kwargs") or None, None),
        ("query_expansion", settings.get("query_expansion"), None),
        ("query_length", settings.get("query_length"), None),
        ("document_length", settings.get("document_length"), None),
    )
    for name, value, allowed in used:
        if value not in (None, allowed):
            raise _refused(folder, f"its encoder has {name} {value!r}; allowed: {allowed!r}")


def _check_prompt(folder: Path) -> None:
    settings = read_json(folder / "config_sentence_transformers.json")
    name = settings.get("default_prompt_name")
    if name and settings.get("prompts", {}).get(name):
        raise _refused(
            folder, f"it puts the prompt {name!r} before every text; remove default_prompt_name and send it"
        )


def _poolings(place: Path) -> tuple[Pooling, ...]:
    settings = dict(read_json(place / "config.json"))
    width = [settings.pop(name) for name in _DIMENSIONS if name in settings]
    settings.pop("include_prompt", None)  # there is no prompt
    old = [_OLD_POOLINGS[name] for name in _OLD_POOLINGS if settings.pop(name, False)]
    found = settings.pop("pooling_mode", None)
    if settings or not width:
        raise _refused(place, f"settings of Pooling that are not known: {', '.join(settings) or 'none'}")
    modes = [found] if isinstance(found, str) else (found or old or ["mean"])
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise _refused(place, f"pooling_mode {unknown[0]!r} is not known; known: {', '.join(POOLINGS)}")
    return tuple(modes)


def _vector_modules(names: Sequence[str], places: Sequence[Path]) -> tuple[VectorModule, ...]:
    found = (_vector_module(name, place) for name, place in zip(names, places, strict=True))
    return tuple(module for module in found if module is not None)


def _vector_module(name: str, place: Path) -> VectorModule | None:
    """A module that vectors go through; None if it does nothing once a model is trained."""
    settings = dict(read_json(place / "config.json"))
    ends = (settings.pop("module_input_name", None), settings.pop("module_output_name", None))
    if any(end not in (None, _VECTOR) for end in ends):
        raise _refused(place, f"{name} works on {ends}; allowed: {_VECTOR!r}")
    match name:
        case "Normalize":
            return NormalizeModule()
        case "Dropout":
            return None
        case "LayerNorm":
            _check_weights(place)
            return LayerNormModule(place, _number(place, settings, "dimension"))
        case "Dense":
            _check_weights(place)
            return _dense(place, settings)
    raise _refused(place, f"the module {name} is not known; known: Dense, Dropout, LayerNorm, Normalize")


def _dense(place: Path, settings: dict[str, Any]) -> DenseModule:
    path = settings.pop("activation_function", "torch.nn.modules.activation.Tanh")
    activation = activation_named(place, "activation_function", path)
    inputs, outputs = _number(place, settings, "in_features"), _number(place, settings, "out_features")
    bias, residual = bool(settings.pop("bias", True)), bool(settings.pop("use_residual", False))
    if settings:
        raise _refused(place, f"settings of Dense that are not known: {', '.join(settings)}")
    return DenseModule(place, inputs, outputs, bias, activation, residual)


def activation_named(place: Path, setting: str, path: Any) -> str:
    """The one of `ACTIVATIONS` that a setting names by its full path in PyTorch.

    Raises:
        ConfigError: it is none of them.
    """
    package, _, activation = str(path).rpartition(".")
    if not package.startswith("torch.nn.modules") or activation not in ACTIVATIONS:
        raise _refused(place, f"{setting} {path!r} is not known; of PyTorch's: {', '.join(ACTIVATIONS)}")
    return activation


def _number(place: Path, settings: dict[str, Any], name: str) -> int:
    value = settings.pop(name, None)
    if not isinstance(value, int) or value < 1:
        raise _refused(place, f"{name} is {value!r}; allowed: a whole number of at least 1")
    return value


def _check_weights(place: Path) -> None:
    if not (place / "model.safetensors").is_file():
        raise _refused(place, "no model.safetensors; other formats can run code and are never loaded")


def _refused(place: Path, problem: str) -> ConfigError:
    return ConfigError(f"model: {str(place)!r}: {problem}")
