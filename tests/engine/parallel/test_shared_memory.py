"""Workers of one machine average through shared memory what an all-reduce would give them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from averaging_worker import SIZES, average, rows_of


@pytest.mark.parametrize("world", [2, 3])
def test_every_worker_gets_the_mean_over_all(world: int, tmp_path: Path) -> None:
    before = set(Path("/dev/shm").glob("headway-*"))
    mp.spawn(average, (world, str(tmp_path)), nprocs=world)
    expected = []
    for dtype in (torch.float32, torch.bfloat16):
        for size in SIZES:
            first, *others = rows_of(size, dtype, world)
            for row in others:
                first = first + row
            expected.append(first / world)
    for rank in range(world):
        for values, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert torch.equal(values, wanted)
    assert set(Path("/dev/shm").glob("headway-*")) <= before
