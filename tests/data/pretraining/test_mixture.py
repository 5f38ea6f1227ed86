"""Rows of several corpora in every batch: in proportion, each source's rows once an epoch of its own."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from headway.config.corpus import CorpusConfig
from headway.config.pretrain import MaskingConfig
from headway.data.batch import Batch
from headway.data.corpus.corpus import Corpus
from headway.data.corpus.prepare import prepare_corpus, read_splits
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.pretraining.mixture import PATTERN, MixedBatches, pattern_of
from headway.data.sampling import BatchSizes

WEIGHTS = [0.6, 0.1, 0.3]
BATCH = 12


@pytest.fixture(scope="module")
def corpora(corpus: Any, other_pairs, tmp_path_factory) -> list[Corpus]:
    """Three corpora of one tokenizer and of different sizes."""
    folder = tmp_path_factory.mktemp("mixture")
    made = [corpus]
    for number, some in enumerate((other_pairs[:15], other_pairs[15:60])):
        path = folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in some))
        config = CorpusConfig(source=str(path), max_length=32, tokenizer=corpus.folder / "tokenizer")
        train, held_out, duplicates = read_splits(config)
        made.append(prepare_corpus(train, held_out, config, folder, duplicates))
    return made


def mixed(
    corpora: list[Corpus], weights: list[float] = WEIGHTS, sizes: BatchSizes | None = None, **more: Any
) -> MixedBatches:
    sources = [
        PretrainingBatches(
            one.store("train"),
            one.tokenizer,
            max_length=32,
            masking=MaskingConfig(),
            pairs="nsp",
            batch_sizes=BatchSizes(1),
            seed=number,
        )
        for number, one in enumerate(corpora)
    ]
    return MixedBatches(sources, weights, sizes or BatchSizes(BATCH), **more)


def owners_and_rows(batches: MixedBatches, made: list[Batch]) -> list[tuple[int, int]]:
    """The source and row of each sequence."""
    starts = np.cumsum([0, *(source.rows for source in batches.sources)])
    ids = np.concatenate([batch.row_ids.numpy() for batch in made])
    owners = np.searchsorted(starts, ids, side="right") - 1
    return list(zip(owners.tolist(), (ids - starts[owners]).tolist(), strict=True))


def sequences(made: list[Batch]) -> dict[int, tuple[list[int], list[int], int]]:
    """Row → its tokens, its hidden tokens and its label."""
    found = {}
    for batch in made:
        ends = batch.lengths.cumsum(0).tolist()
        for row, label, start, end in zip(
            batch.row_ids.tolist(), batch.labels.tolist(), [0, *ends], ends, strict=False
        ):
            inside = (batch.masked_positions >= start) & (batch.masked_positions < end)
            tokens = batch.input_ids[start:end].tolist()
            found[row] = (tokens, batch.masked_labels[inside].tolist(), label)
    return found


def test_every_source_has_its_part_of_the_pattern_spread_out_evenly():
    pattern = pattern_of(WEIGHTS)
    assert np.abs(np.bincount(pattern) - np.multiply(WEIGHTS, PATTERN)).max() < 1
    for start in range(0, PATTERN - 100, 61):
        counts = np.bincount(pattern[start : start + 100], minlength=3)
        assert np.abs(counts - np.multiply(WEIGHTS, 100)).max() <= 2


@pytest.mark.parametrize("weights", [[1.0], [1e-9, 1.0], [1.0] * 7, [2.0, 0.0, 1.0]])
def test_a_pattern_is_full_and_leaves_out_only_sources_without_a_weight(weights):
    counts = np.bincount(pattern_of(weights), minlength=len(weights))
    assert counts.sum() == PATTERN
    assert [count > 0 for count in counts] == [weight > 0 for weight in weights]


def test_each_source_runs_through_its_own_epochs(corpora):
    batches = mixed(corpora)
    drawn = [
        one for step in range(100) for one in owners_and_rows(batches, batches.micro_batches(step, 0, 1, 1))
    ]
    assert len(drawn) == 100 * BATCH
    for number, source in enumerate(batches.sources):
        mine = [row for owner, row in drawn if owner == number]
        assert abs(len(mine) - WEIGHTS[number] * len(drawn)) <= 2
        assert batches.drawn_until(100)[number] == len(mine)
        times = Counter(mine)
        assert len(mine) < source.rows or set(times) == set(range(source.rows))
        assert max(times.values()) - min(times[row] for row in range(source.rows)) <= 1
    assert [len(mine) > source.rows for source in batches.sources][1]  # the small one is read again and again


def test_an_epoch_of_a_source_ends_before_the_next_begins(corpora):
    batches = mixed(corpora, [0.5, 0.5, 0.0])
    rows = [
        row
        for step in range(30)
        for owner, row in owners_and_rows(batches, batches.micro_batches(step, 0, 1, 1))
        if owner == 1
    ]
    # Within a step rows are sorted, so epochs are compared where they end with a step.
    count = batches.sources[1].rows
    whole = [step for step in range(1, 31) if batches.drawn_until(step)[1] % count == 0]
    assert whole
    for step in whole:
        before = rows[: batches.drawn_until(step)[1]]
        assert set(Counter(before).values()) == {len(before) // count}


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (3, 1), (1, 4), (2, 3)])
def test_the_global_batch_is_the_same_for_every_number_of_workers(world_size, accumulation, corpora):
    batches = mixed(corpora)
    for step in (0, 1, 17, 400):
        parts = world_size * accumulation
        made = [
            batch
            for rank in range(world_size)
            for batch in batches.micro_batches(step, rank, world_size, parts)
        ]
        assert sequences(made) == sequences(mixed(corpora).micro_batches(step, 0, 1, 1))
        assert [len(batch.lengths) for batch in made] == batches.part_sizes(step, parts)


def test_a_row_is_what_its_source_alone_makes_of_it(corpora):
    batches = mixed(corpora)
    starts = np.cumsum([0, *(source.rows for source in batches.sources)])
    found = sequences(batches.micro_batches(0, 0, 1, 1))
    for (owner, row), tokens in zip(
        owners_and_rows(batches, batches.micro_batches(0, 0, 1, 1)), found.values(), strict=True
    ):
        alone = batches.sources[owner].batch(np.zeros(1, np.int64), np.asarray([row]))
        assert sequences([alone])[row] == tokens == found[int(starts[owner]) + row]


def test_a_phase_goes_on_after_the_rows_of_an_earlier_one(corpora):
    first = mixed(corpora, [0.5, 0.0, 0.5])
    second = mixed(corpora, [0.2, 0.0, 0.8], drawn_before=first.drawn_until(3))
    count = first.sources[0].rows
    steps, drawn = 0, []
    for step in range(3):
        drawn += owners_and_rows(first, first.micro_batches(step, 0, 1, 1))
    while second.drawn_until(steps + 1)[0] <= count:
        drawn += owners_and_rows(second, second.micro_batches(steps, 0, 1, 1))
        steps += 1
    assert steps > 3
    assert max(Counter(row for owner, row in drawn if owner == 0).values()) == 1


def test_validation_rows_of_all_sources_are_each_read_once_by_one_worker(corpora):
    batches = mixed(corpora)
    ids: list[int] = []
    counts = []
    for rank in range(2):
        made = list(batches.in_order(rank, 2, 7))
        counts.append(len(made))
        ids += torch.cat([batch.row_ids for batch in made]).tolist()
    assert sorted(ids) == list(range(batches.rows))
    assert counts[0] == math.ceil(math.ceil(batches.rows / 2) / 7)
