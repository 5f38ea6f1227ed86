"""Drop rows of an encoder's word embeddings, and of a head that scores words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

_TOKEN_SETTINGS = [f"{name}_token_id" for name in ("pad", "cls", "sep", "bos", "eos", "mask", "unk")]


@torch.no_grad()
def keep_tokens(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keep the words with some ids, in place; each gets its index among those as its new id.

    In a model of four words of which [0, 2, 3] stay, the embeddings (4, hidden_size) become
    (3, hidden_size), and what was word 2 is word 1.

    Args:
        model: an encoder, or a model around one.
        kept: ids of words, increasing.
    """
    rows = torch.tensor(kept)
    words, scores = model.get_input_embeddings(), model.get_output_embeddings()
    weights = {id(words.weight): words.weight}
    if scores is not None:  # its weight may be that of the embeddings, which must not be moved twice
        weights |= {id(weight): weight for weight in scores.parameters()}
    for weight in weights.values():
        weight[: len(rows)] = weight[rows]
    model.resize_token_embeddings(len(rows), mean_resizing=False)
    numbers = {old: new for new, old in enumerate(kept)}
    for name in _TOKEN_SETTINGS:
        if getattr(model.config, name, None) is not None:
            setattr(model.config, name, numbers.get(getattr(model.config, name)))
    model.get_input_embeddings().padding_idx = getattr(model.config, "pad_token_id", None)
