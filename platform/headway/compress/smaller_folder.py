"""Writes a smaller model into a folder, with what stood beside the original's weights and still holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.data.corpus.tokenizer import load_tokenizer
from headway.engine.model.encoder import save_model
from headway.inference.sentence_modules import NormalizeModule, read_json, read_sentence_modules
from headway.runs.finetuning import SETTINGS_FILE

_SENTENCE_FILES = ("modules.json", "sentence_*_config.json", "config_sentence_transformers.json")
_WIDTHS = ("embedding_dimension", "word_embedding_dimension")


def check_sentence_modules(original: Path, hidden_size: int, new_hidden_size: int) -> None:
    """Refuse to change the width of hidden states that weights of sentence-transformers' modules multiply.

    Raises:
        ConfigError: names the module.
    """
    if hidden_size == new_hidden_size:
        return
    for module in read_sentence_modules(original).vector_modules:
        if not isinstance(module, NormalizeModule):
            raise ConfigError(
                f"heads: {str(original)!r} has weights in {module.folder.name!r} for {hidden_size} columns; "
                f"with fewer heads there would be {new_hidden_size}"
            )


def write_smaller(
    model: PreTrainedModel, original: Path, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write a model that was made of the one in `original`, its tokenizer, and how its tokens are pooled.

    Scales of int8 and stored answers are left out, since they are those of the original's weights.

    Args:
        model: of the same kind, with the same or fewer columns of hidden states.
        original: a folder that `check_sentence_modules` has passed.
        folder: existing and empty.
        tokenizer: of the model; the original's if None.
    """
    save_model(model, folder)
    (tokenizer or load_tokenizer(original)).save_pretrained(folder)
    for pattern in (*_SENTENCE_FILES, SETTINGS_FILE):
        for path in original.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    for module in read_json(original / "modules.json") or ():
        if module["path"]:
            shutil.copytree(original / module["path"], folder / module["path"])
            if module["type"].endswith(".Pooling"):
                _set_width(folder / module["path"] / "config.json", model.config.hidden_size)


def _set_width(path: Path, width: int) -> None:
    settings = read_json(path)
    settings |= {name: width for name in _WIDTHS if name in settings}
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
