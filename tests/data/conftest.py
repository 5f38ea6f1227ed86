"""Token stores whose tokens say where they came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headway.data.corpus.store import TokenStore, open_store, write_store


@pytest.fixture
def numbered_store(tmp_path: Path) -> Callable[[int], TokenStore]:
    """A function that writes 40 documents of 1 to 12 sentences of 1 to so many tokens.

    A token's value is its index in the whole store.
    """

    def write(longest: int) -> TokenStore:
        rng = np.random.default_rng(0)
        position, documents = 0, []
        for _ in range(40):
            sentences = []
            for _ in range(int(rng.integers(1, 13))):
                length = int(rng.integers(1, longest + 1))
                sentences.append(np.arange(position, position + length, dtype=np.int32))
                position += length
            documents.append(sentences)
        write_store(tmp_path / "numbered", documents)
        return open_store(tmp_path / "numbered")

    return write
