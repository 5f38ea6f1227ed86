"""Distils an encoder into a table of token vectors, as model2vec does (Tulkens and van Dongen 2024).

Each token of the vocabulary goes through the encoder by itself, framed by special tokens; the mean of the
hidden states is its vector. Principal components keep what differs between tokens, and weights let frequent
tokens, which say little, count less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from headway.data.framing import Framing
from headway.engine.formats.static import StaticEmbeddingConfig, StaticEmbeddingModel
from headway.engine.model.heads import mean_pooled
from headway.engine.model.layout import layout_of_batch
from headway.inference.packing import Operation, Pack, TokenSequence

if TYPE_CHECKING:
    from headway.inference.model import EncoderModel

_PACK_TOKENS = 1024
_UNUSED = re.compile(r"\[unused\d+\]")


class Distilled(NamedTuple):
    """A table, and what it keeps.

    Attributes:
        model: the table.
        kept_variance: the fraction of the token vectors' variance that lies in the components.
    """

    model: StaticEmbeddingModel
    kept_variance: float


def distil_table(
    encoder: EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    dimensions: int,
    smoothing: float | None,
    counts: np.ndarray | None = None,
) -> Distilled:
    """A table of token vectors that stands for an encoder.

    Args:
        encoder: in float32.
        tokenizer: the encoder's.
        dimensions: numbers in a vector, at most the encoder's hidden size.
        smoothing: see `frequency_weights`; all tokens count alike if None.
        counts: how often each token occurs, shape (vocab_size,); by its rank if None.
    """
    rows = encoder.model.get_input_embeddings().num_embeddings
    ignored = ignored_tokens(tokenizer)
    known = np.setdiff1d(np.arange(min(rows, len(tokenizer))), ignored)
    vectors, kept_variance = principal_components(token_vectors(encoder, tokenizer, known), dimensions)
    if smoothing is not None:
        frequencies = zipf_frequencies(len(known)) if counts is None else counts[known] / counts.sum()
        weights = frequency_weights(frequencies, smoothing)
        vectors = vectors * torch.from_numpy(weights.astype(np.float32))[:, None]
    config = StaticEmbeddingConfig(
        vocab_size=rows,
        hidden_size=vectors.size(1),
        pad_token_id=tokenizer.pad_token_id,
        ignored_token_ids=ignored.tolist(),
    )
    model = StaticEmbeddingModel(config)
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.embedding.weight[torch.from_numpy(known)] = vectors
    return Distilled(model.eval(), kept_variance)


def ignored_tokens(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Ids of special tokens, the unknown one included, and of places kept free in the vocabulary."""
    unused = [number for token, number in tokenizer.get_vocab().items() if _UNUSED.fullmatch(token)]
    return np.unique([*tokenizer.all_special_ids, *unused])


@torch.inference_mode()
def token_vectors(encoder: EncoderModel, tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> Tensor:
    """The mean hidden state of each token, framed as a text of its own: float32, (tokens, hidden_size)."""
    framing = Framing.of(tokenizer)
    parts = []
    for pack in _packs([framing.one(tokens[index : index + 1]) for index in range(len(tokens))]):
        batch = encoder.batch(Operation("embed"), pack).to(encoder.device)
        layout = layout_of_batch(batch)
        hidden = encoder.trunk(batch.input_ids, batch.token_type_ids, layout)
        parts.append(mean_pooled(hidden.float(), layout)[: len(pack.lengths)].cpu())
    return torch.cat(parts)


def _packs(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[Pack]:
    step = max(1, _PACK_TOKENS // len(rows[0][0]))
    sequences = [TokenSequence(ids.astype(np.int32), types.astype(np.uint8)) for ids, types in rows]
    for start in range(0, len(sequences), step):
        yield Pack.of(sequences[start : start + step])


def principal_components(vectors: Tensor, dimensions: int) -> tuple[Tensor, float]:
    """Vectors in the directions in which they differ most (Jolliffe 2002, section 1.1).

    Args:
        vectors: floating, (vectors, columns).
        dimensions: directions to keep; all if there are no more.

    Returns:
        The centred vectors in these directions, (vectors, dimensions), and the fraction of the variance that
        they have. Each direction points to where its largest number is positive.
    """
    centred = vectors - vectors.mean(dim=0)
    values, directions = torch.linalg.eigh((centred.T @ centred).double() / max(1, len(vectors) - 1))
    values, directions = values.flip(0).clamp(min=0.0), directions.flip(1)  # largest first
    components = centred @ directions[:, :dimensions].to(centred.dtype)
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    kept = float(values[:dimensions].sum() / values.sum().clamp(min=1e-12))
    return components * largest.sign(), kept


def zipf_frequencies(count: int) -> np.ndarray:
    """Frequencies of words sorted by them, by Zipf's law, float64, (count,).

    As model2vec has them, the first word's rank is 2.
    """
    inverse = 1.0 / np.arange(2, count + 2)
    frequencies: np.ndarray = inverse / inverse.sum()
    return frequencies


def frequency_weights(frequencies: np.ndarray, smoothing: float) -> np.ndarray:
    """Smooth inverse frequencies (Arora et al. 2017, algorithm 1): `smoothing / (smoothing + frequency)`."""
    weights: np.ndarray = smoothing / (smoothing + frequencies)
    return weights


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rows: int) -> np.ndarray:
    """How often each token occurs in texts, int64, (rows,)."""
    from headway.data.corpus.tokenizer import tokenize

    counts = np.zeros(rows, np.int64)
    for ids in tokenize(tokenizer, texts):
        np.add.at(counts, ids, 1)
    return counts
