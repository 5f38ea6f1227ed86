"""Batches are functions of (seed, step), whatever the number of workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from headway.config.base import ConfigError
from headway.config.pretrain import MaskingConfig
from headway.data.batches import Batch, Example, LabelledBatches, collate
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.pretraining.row_plan import plan_token_rows
from headway.data.sampling import BatchSizes

BATCH = 12


def pretraining(
    corpus: Any, next_sentence: bool = True, seed: int = 0, **settings: Any
) -> PretrainingBatches:
    defaults: dict[str, Any] = {
        "max_length": corpus.facts["max_length"],
        "masking": MaskingConfig(),
        "pairs": "nsp" if next_sentence else None,
        "batch_sizes": BatchSizes(BATCH),
    }
    return PretrainingBatches(corpus.store("train"), corpus.tokenizer, seed=seed, **(defaults | settings))


def sequences(batches: list[Batch]) -> dict[int, tuple[list[int], ...]]:
    """Row → what the batch holds of it, with positions counted from the sequence's start."""
    actual: dict[int, tuple[list[int], ...]] = {}
    for batch in batches:
        starts = (batch.lengths.cumsum(0) - batch.lengths).tolist()
        for index, (start, length) in enumerate(zip(starts, batch.lengths.tolist(), strict=True)):
            inside = (batch.masked_positions >= start) & (batch.masked_positions < start + length)
            actual[int(batch.row_ids[index])] = (
                batch.input_ids[start : start + length].tolist(),
                batch.token_type_ids[start : start + length].tolist(),
                [int(batch.labels[index])],
                (batch.masked_positions[inside] - start).tolist(),
                batch.masked_labels[inside].tolist(),
            )
    return actual


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (3, 1), (1, 4), (2, 3)])
def test_the_global_batch_is_the_same_for_every_number_of_workers(world_size, accumulation, corpus):
    """Masks, pairs and labels included."""
    source = pretraining(corpus)
    for step in (0, 1, 17):
        whole = sequences(source.micro_batches(step, 0, 1, 1))
        parts = [
            part
            for rank in range(world_size)
            for part in source.micro_batches(step, rank, world_size, world_size * accumulation)
        ]
        assert len(parts) == world_size * accumulation
        assert sum(len(part.lengths) for part in parts) == BATCH
        assert sequences(parts) == whole


def test_a_batch_does_not_depend_on_what_was_drawn_before(corpus):
    one, other = pretraining(corpus), pretraining(corpus)
    for step in range(5):
        one.micro_batches(step, 0, 1, 1)
    assert sequences(one.micro_batches(9, 0, 1, 1)) == sequences(other.micro_batches(9, 0, 1, 1))


def test_another_seed_and_another_epoch_mask_anew(corpus):
    source = pretraining(corpus)
    per_epoch = -(-source.rows // BATCH)
    first = {
        row: s
        for step in range(per_epoch)
        for row, s in sequences(source.micro_batches(step, 0, 1, 1)).items()
    }
    later = sequences(source.micro_batches(per_epoch * 2, 0, 1, 1))
    assert sum(first[row] != actual for row, actual in later.items()) > 0.8 * len(later)
    other = sequences(pretraining(corpus, seed=1).micro_batches(0, 0, 1, 1))
    assert other != sequences(source.micro_batches(0, 0, 1, 1))


def test_each_row_is_seen_once_an_epoch(corpus):
    source = pretraining(corpus)
    drawn = [
        row
        for step in range(source.rows)  # BATCH epochs
        for batch in source.micro_batches(step, 0, 1, 1)
        for row in batch.row_ids.tolist()
    ]
    assert np.bincount(drawn).tolist() == [BATCH] * source.rows


@pytest.mark.parametrize("next_sentence", [True, False])
def test_sequences_are_framed_and_typed_as_bert_wants(next_sentence, corpus):
    tokenizer = corpus.tokenizer
    for step in range(5):
        [batch] = pretraining(corpus, next_sentence).micro_batches(step, 0, 1, 1)
        for ids, types, label, positions, labels in sequences([batch]).values():
            assert len(ids) <= corpus.facts["max_length"]
            assert ids[0] == tokenizer.cls_token_id
            ends = [position for position, token in enumerate(ids) if token == tokenizer.sep_token_id]
            assert ends[-1] == len(ids) - 1
            assert len(ends) == (2 if next_sentence else 1)
            boundary = ends[0] + 1
            assert types == [0] * boundary + [1] * (len(ids) - boundary)
            assert label[0] in ((0, 1) if next_sentence else (0,))
            assert not {0, *ends} & set(positions)
            assert len(labels) == len(positions) >= 1


PARTS, TOKENS = 4, 4 * 70


@pytest.mark.parametrize("kind", [None, "nsp", "sop"])
def test_batches_of_so_many_tokens_are_full_but_for_less_than_a_row(kind, corpus):
    source = pretraining(corpus, pairs=kind, batch_tokens=TOKENS)
    for step in range(30):
        for batch in source.micro_batches(step, 0, 1, PARTS):
            assert len(batch.input_ids) == len(batch.position_ids) == TOKENS // PARTS
            bound = source.lengths[batch.row_ids].sum()
            assert bound <= TOKENS // PARTS < bound + 32
            tail = TOKENS // PARTS - int(batch.lengths.sum())
            ends = [0, *batch.lengths.cumsum(0).tolist(), *([TOKENS // PARTS] if tail else [])]
            assert batch.cu_seqlens.tolist() == ends
            pad = corpus.tokenizer.pad_token_id
            assert batch.input_ids[TOKENS // PARTS - tail :].tolist() == [pad] * tail
            assert batch.masked_positions.max() < batch.lengths.sum()


@pytest.mark.parametrize("tokens", [PARTS * 32, TOKENS, 40_000])
def test_batches_of_so_many_tokens_hold_every_row_once_an_epoch(tokens, corpus):
    source = pretraining(corpus, batch_tokens=tokens)
    drawn: list[int] = []
    step = 0
    while len(drawn) < 3 * source.rows:
        for batch in source.micro_batches(step, 0, 1, PARTS):
            drawn += batch.row_ids.tolist()
        step += 1
    for epoch in range(3):
        assert sorted(drawn[epoch * source.rows :][: source.rows]) == list(range(source.rows))
    assert step / 3 == pytest.approx(source.steps_an_epoch(PARTS), rel=0.02, abs=0.5)


@pytest.mark.parametrize("tokens", [None, TOKENS])
def test_the_sizes_of_parts_are_known_without_making_them(tokens, corpus):
    source = pretraining(corpus, batch_tokens=tokens)
    for step in (0, 7, 300):
        made = source.micro_batches(step, 0, 1, PARTS)
        assert source.part_sizes(step, PARTS) == [len(batch.lengths) for batch in made]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_batches_of_so_many_tokens_are_the_same_for_every_number_of_workers(world_size, corpus):
    for step in (0, 7, 300):
        parts = [
            part
            for rank in range(world_size)
            for part in pretraining(corpus, batch_tokens=TOKENS).micro_batches(step, rank, world_size, PARTS)
        ]
        alone = pretraining(corpus, batch_tokens=TOKENS).micro_batches(step, 0, 1, PARTS)
        for one, other in zip(parts, alone, strict=True):
            assert sequences([one]) == sequences([other])


def test_a_row_that_fits_into_no_micro_batch_is_refused(corpus):
    source = pretraining(corpus, batch_tokens=4 * 31)
    with pytest.raises(
        ConfigError, match="each of 4 micro-batches has 31 positions, and the longest row has 32"
    ):
        source.micro_batches(0, 0, 1, 4)


def unmasked(batch: Batch) -> torch.Tensor:
    """The tokens as they were before some were hidden."""
    return batch.input_ids.index_put((batch.masked_positions,), batch.masked_labels)


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("max_length", [8, 17, 32, 500])
def test_without_pairs_an_epoch_holds_each_token_of_the_corpus_once(max_length, whole_words, corpus):
    """Sentences of about 10 tokens are longer, and shorter, than what fits."""
    masking = MaskingConfig(whole_words=whole_words)
    source = pretraining(corpus, False, max_length=max_length, masking=masking, batch_sizes=BatchSizes(1))
    actual: dict[int, list[int]] = {}
    for step in range(source.rows):
        [batch] = source.micro_batches(step, 0, 1, 1)
        assert len(batch.input_ids) == source.lengths[batch.row_ids[0]] <= max_length
        actual[int(batch.row_ids[0])] = unmasked(batch)[1:-1].tolist()
    together = [token for row in sorted(actual) for token in actual[row]]
    assert together == corpus.store("train").tokens.tolist()
    assert source.truncated_fraction == 0.0


@pytest.mark.parametrize("max_length", [8, 17, 500])
def test_in_two_parts_an_epoch_holds_each_token_of_the_corpus_once(max_length, corpus):
    source = pretraining(corpus, False, max_length=max_length, in_two_parts=True, batch_sizes=BatchSizes(1))
    rows = plan_token_rows(corpus.store("train"), 2 * (max_length - 2))
    actual: dict[int, list[int]] = {}
    for step in range(source.rows):
        [batch] = source.micro_batches(step, 0, 1, 1)
        assert source.part_sizes(step, 1) == [len(batch.lengths)] == [2]
        assert batch.longest <= max_length
        assert len(batch.input_ids) == source.lengths[batch.row_ids[0]]
        parts = unmasked(batch).split(batch.lengths.tolist())
        assert all(part[[0, -1]].tolist() == [source.cls, source.sep] for part in parts)
        first, second = (part[1:-1].tolist() for part in parts)
        row = int(batch.row_ids[0])
        actual[row] = first if rows.lengths[row] == 1 else first + second  # one token is both of its parts
        assert batch.row_ids.tolist() == [batch.row_ids[0]] * 2
    together = [token for row in sorted(actual) for token in actual[row]]
    assert together == corpus.store("train").tokens.tolist()


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_no_row_has_more_tokens_than_it_was_said_to_have(kind, corpus):
    source = pretraining(corpus, pairs=kind)
    for step in range(20):
        [batch] = source.micro_batches(step, 0, 1, 1)
        assert np.all(batch.lengths.numpy() <= source.lengths[batch.row_ids])


def test_what_truncation_of_pairs_drops_is_told(corpus):
    """Of pairs in order, whose both segments are the row's own."""
    source = pretraining(corpus, pairs="sop", batch_sizes=BatchSizes(1))
    seen = [
        token
        for step in range(source.rows)
        for batch in source.micro_batches(step, 0, 1, 1)
        for token in unmasked(batch)[batch.position_ids > 0].tolist()
    ]
    kept = len(seen) - 2 * source.rows  # but for [SEP]
    total = len(corpus.store("train").tokens)
    assert source.truncated_fraction == pytest.approx(1 - kept / total)
    assert 0 < source.truncated_fraction < 0.5


def test_static_masks_are_the_same_in_every_epoch(corpus):
    source = pretraining(corpus, masking=MaskingConfig(static=True))
    epochs = [
        sequences([source.batch(np.full(source.rows, epoch), np.arange(source.rows))]) for epoch in (0, 5)
    ]
    assert epochs[0] == epochs[1]


def test_validation_is_the_same_each_time_and_shared_out_whole(corpus):
    source = pretraining(corpus)
    alone = sequences(list(source.in_order(0, 1, 7)))
    assert len(alone) == source.rows
    shared = [sequences(list(source.in_order(rank, 3, 5))) for rank in range(3)]
    assert sum(map(len, shared)) == source.rows
    assert shared[0] | shared[1] | shared[2] == alone


def test_at_most_so_many_rows_are_validated(corpus):
    source = pretraining(corpus, max_rows=5)
    assert source.rows == 5
    assert len(sequences(list(source.in_order(0, 1, 2)))) == 5
    assert pretraining(corpus, max_rows=10**6).rows == pretraining(corpus).rows


def test_the_rows_that_are_validated_do_not_depend_on_the_seed(corpus):
    """So that runs with several seeds are compared on the same rows, which are not just the first ones."""

    def texts(**settings: Any) -> list[list[int]]:
        source = pretraining(corpus, next_sentence=False, **settings)
        return [unmasked(batch).tolist() for batch in source.in_order(0, 1, 1)]

    everything = texts()
    chosen = [texts(seed=seed, max_rows=5) for seed in range(3)]
    assert chosen[0] == chosen[1] == chosen[2]
    assert all(text in everything for text in chosen[0])
    assert sorted(chosen[0]) != sorted(everything[:5])


def test_labelled_texts_are_framed_and_cut(corpus):
    tokenizer = corpus.tokenizer
    texts = [np.arange(5, 9), np.arange(5, 60), np.empty(0, np.int64)]
    labels = np.asarray([2, 0, 1])
    source = LabelledBatches(texts, labels, tokenizer, max_length=16, batch_size=3, seed=0)
    actual = sequences(source.micro_batches(0, 0, 1, 1))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert actual[0][0] == [cls, 5, 6, 7, 8, sep]
    assert actual[1][0] == [cls, *range(5, 19), sep]
    assert actual[2][0] == [cls, sep]
    assert [actual[row][2][0] for row in range(3)] == [2, 0, 1]


def test_collating_moves_places_with_their_sequence():
    def example(ids: list[int], positions: list[int], row: int) -> Example:
        array = np.asarray(ids)
        return Example(array, np.zeros(len(ids), int), row, np.asarray(positions), array[positions], row)

    batch = collate([example([1, 2, 3], [1], 0), example([4, 5], [0, 1], 1)])
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5]
    assert batch.lengths.tolist() == [3, 2]
    assert batch.masked_positions.tolist() == [1, 3, 4]
    assert batch.masked_labels.tolist() == [2, 4, 5]
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert tensors.pop("cu_seqlens").dtype == torch.int32
    assert {tensor.dtype for tensor in tensors.values()} == {torch.int64}
