"""Cut each row of text into two parts, for a contrastive loss: each should find the other."""

from __future__ import annotations

import numpy as np

from headway.data.pretraining.counter_random import Purpose, integers_below, random_bits
from headway.data.pretraining.pairs import Segments


def two_parts(rows: Segments, longest: int, keys: np.ndarray) -> Segments:
    """Both parts of each row, one after the other; a row is cut somewhere in its middle half.

    Together they have each token of the row once. Only a row of a single token is both of its parts.

    Args:
        rows: of at most `2 * longest` tokens each.
        longest: tokens of a part, at most.
        keys: uint64, shape (rows,): where a row is cut is a function of its key.

    Returns:
        Segments of shape (2 * rows,).
    """
    lengths = rows.lengths
    shortest = np.maximum(lengths // 4, 1)
    least = np.maximum(shortest, lengths - longest)
    most = np.minimum(np.maximum(lengths - shortest, 1), longest)
    first = least + integers_below(most - least + 1, random_bits(keys, Purpose.SPLIT))
    second = np.maximum(lengths - first, 1)
    starts = np.stack([rows.starts, rows.starts + lengths - second], 1)
    return Segments(starts.ravel(), np.stack([first, second], 1).ravel())
