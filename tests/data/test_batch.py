"""A batch's layout follows from its lengths, and it crosses to devices and processes in one piece."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from headway.data.batch import Batch, Packing


def batch_of(lengths: list[int], labels: torch.Tensor | None = None) -> Batch:
    tokens = sum(lengths)
    return Batch.of(
        input_ids=torch.arange(tokens) + 5,
        token_type_ids=torch.arange(tokens) % 2,
        lengths=torch.tensor(lengths),
        labels=torch.zeros(len(lengths), dtype=torch.int64) if labels is None else labels,
        masked_positions=torch.tensor([1]),
        masked_labels=torch.tensor([8]),
        row_ids=torch.arange(len(lengths)) + 100,
    )


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.longest == other.longest
    for name, tensor in tensors_of(one).items():
        actual = tensors_of(other)[name]
        assert (actual.dtype, actual.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(actual.cpu(), tensor), name


def test_four_tokens_of_two_sequences_are_laid_out_as_documented():
    batch = batch_of([2, 2])
    assert batch.position_ids.tolist() == [0, 1, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 2, 4]
    assert batch.longest == 2


def test_boundaries_and_positions_are_those_of_a_loop():
    lengths = np.random.default_rng(0).integers(1, 50, 30).tolist()
    batch = batch_of(lengths)
    assert batch.position_ids.tolist() == [position for length in lengths for position in range(length)]
    assert batch.cu_seqlens.tolist() == [sum(lengths[:n]) for n in range(31)]
    assert (batch.position_ids.dtype, batch.cu_seqlens.dtype) == (torch.int64, torch.int32)
    assert (batch.longest, type(batch.longest)) == (max(lengths), int)


def test_padding_is_one_more_entry_of_the_boundaries_and_nothing_else():
    batch = batch_of([2, 3])
    padded = batch.padded(9, token=7)
    assert padded.cu_seqlens.tolist() == [0, 2, 5, 9]
    assert padded.position_ids.tolist() == [0, 1, 0, 1, 2, 0, 0, 0, 0]
    assert padded.input_ids.tolist() == [*batch.input_ids.tolist(), 7, 7, 7, 7]
    assert padded.token_type_ids.tolist() == [*batch.token_type_ids.tolist(), 0, 0, 0, 0]
    assert padded.longest == 4
    for name in ("lengths", "labels", "masked_positions", "masked_labels", "row_ids"):
        assert getattr(padded, name) is getattr(batch, name)
    for name, tensor in tensors_of(batch).items():
        assert tensors_of(padded)[name].dtype == tensor.dtype


def test_a_full_batch_is_not_padded_and_a_larger_one_is_refused():
    batch = batch_of([2, 3])
    assert batch.padded(5, token=0) is batch
    with pytest.raises(ValueError, match="5 tokens do not fit into 4 positions"):
        batch.padded(4, token=0)


LABELS = [
    None,
    torch.tensor([0.5, -1.0, 2.0]),
    torch.tensor([[1, 2], [3, 4], [5, 6]]),
    torch.rand(3, 5, generator=torch.Generator().manual_seed(0)),
]


@pytest.mark.parametrize("labels", LABELS)
def test_a_packed_batch_comes_out_as_it_went_in(labels):
    batch = batch_of([3, 5, 2], labels=labels)
    packing = Packing.of(batch)
    buffer = torch.empty(packing.size, dtype=torch.uint8)
    packing.write(batch, buffer)
    received = pickle.loads(pickle.dumps(packing)).read(buffer)
    assert_equal(batch, received)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors_of(received).values()}) == 1


def test_a_batch_is_on_the_host_already():
    batch = batch_of([3])
    assert batch.to("cpu") is batch
    assert batch.to(torch.device("cpu")) is batch


def test_on_a_device_a_batch_has_its_shapes_in_one_buffer_and_row_ids_on_the_host():
    batch = batch_of([3, 5, 2], labels=LABELS[3])
    moved = batch.to("meta")
    storages = set()
    for name, tensor in tensors_of(moved).items():
        expected = tensors_of(batch)[name]
        assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
        assert tensor.device.type == ("cpu" if name == "row_ids" else "meta")
        if name != "row_ids":
            storages.add(tensor.untyped_storage()._cdata)
    assert len(storages) == 1
    assert moved.longest == 5
    assert moved.to("meta") is moved


def test_a_batch_is_never_read_back_from_a_device():
    with pytest.raises(ValueError, match="a batch cannot move from meta to cpu"):
        batch_of([3]).to("meta").to("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_on_a_gpu_is_the_same_and_the_host_does_not_wait_for_it():
    batch = batch_of([300, 500], labels=torch.rand(2))
    with warned_of_waiting():
        moved = batch.to("cuda")
    assert_equal(batch, moved)
    assert moved.row_ids is batch.row_ids


class warned_of_waiting:  # noqa: N801, used as a function
    """Turns each wait for the GPU into an error."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
