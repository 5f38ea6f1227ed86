"""Where sequences lie in a row of tokens."""

from __future__ import annotations

import torch

from headway.engine.model.layout import layout_of_lengths


def test_places_restart_with_each_sequence():
    layout = layout_of_lengths(torch.tensor([3, 1, 2]))
    assert layout.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert layout.first_tokens.tolist() == [0, 3, 4]
    assert layout.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.lengths.tolist() == [3, 1, 2]
    assert layout.num_tokens == 6


def test_a_single_sequence_is_the_whole_row():
    layout = layout_of_lengths(torch.tensor([4]))
    assert layout.position_ids.tolist() == [0, 1, 2, 3]
    assert layout.first_tokens.tolist() == [0]
