"""Which rows are trained on, select, and are held out."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.data.corpus.tokenizer import load_tokenizer
from headway.data.sources.splitting import text_key, unit_hash
from headway.tasks.item import Item
from headway.tasks.preparation import prepared, read_task
from headway.tasks.splitting import Side, deal_groups, groups_of, split_rows

SIDES = [Side("test", 0.2, "held-out"), Side("validation", 0.15, "validation")]


def item(text, label=None, *keys):
    return Item([text], label, keys or [text], text, [label] if label else [])


def task(tmp_path, rows, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"model": "m", "task": {"source": str(path), "max_length": 32} | settings}
    return validate(FinetuneConfig, config).task


def counts(sides):
    return {name: Counter(row.target for row in rows) for name, rows in sides.items()}


@pytest.mark.parametrize("names", [f"word {i}" for i in range(12)])
def test_a_class_of_three_rows_has_one_on_each_side(names):
    """By hash alone, more than half of such classes would miss a side."""
    rows = [item(f"text {i}", "common") for i in range(200)]
    rows += [item(f"{names} {i}", "rare") for i in range(3)]
    found = counts(split_rows(rows, SIDES))
    assert {name: found[name]["rare"] for name in found} == {"train": 1, "test": 1, "validation": 1}


def test_a_row_keeps_the_side_of_its_hash_unless_its_class_would_be_missing_there():
    rows = [item(f"text {i}", f"class {i % 2}") for i in range(400)]
    rows += [item(f"rare {i}", "rare") for i in range(4)]
    found = split_rows(rows, SIDES)
    for row in found["test"]:
        if row.target != "rare":
            assert unit_hash(text_key(row.texts[0]), "held-out") < 0.2
    expected = sum(unit_hash(text_key(row.texts[0]), "held-out") < 0.2 for row in rows[:400])
    assert sum(row.target != "rare" for row in found["test"]) == expected
    # The order of the rows plays no part.
    turned = split_rows(rows[::-1], SIDES)
    assert {name: {row.texts[0] for row in side} for name, side in turned.items()} == {
        name: {row.texts[0] for row in side} for name, side in found.items()
    }


def test_the_rows_that_change_their_side_are_those_with_the_lowest_hashes():
    rows = [item(f"text {i}", "common") for i in range(100)]
    texts = [f"rare {i}" for i in range(200)]
    hashes = {text: unit_hash(text_key(text), "held-out") for text in texts}
    trained = [text for text in texts if hashes[text] > 0.2][:10]
    found = split_rows(rows + [item(text, "rare") for text in trained], SIDES)
    held_out = [row.texts[0] for row in found["test"] if row.target == "rare"]
    assert sorted(held_out) == sorted(sorted(trained, key=hashes.__getitem__)[:2])


def test_no_side_is_empty_if_there_are_rows_enough():
    for count in range(3, 12):
        for start in range(10):
            found = split_rows([item(f"{start} {i}") for i in range(count)], SIDES)
            assert all(found.values())
            assert sum(map(len, found.values())) == count


def test_a_class_of_two_rows_is_trained_on(tmp_path):
    for start in range(20):
        rows = [{"text": f"text {i}", "label": "common"} for i in range(40)]
        rows += [{"text": f"rare {start} {i}", "label": "rare"} for i in range(2)]
        found = counts(read_task(task(tmp_path, rows)))
        assert found["train"]["rare"] == 1


def test_rows_that_share_a_key_are_one_group_also_through_others():
    rows = [
        item("r0", None, "a", "b"),
        item("r1", None, "c"),
        item("r2", None, "b", "d"),
        item("r3", None, "D  "),
    ]
    assert groups_of(rows) == [0, 1, 0, 0]
    assert groups_of([]) == []


def test_a_large_group_is_trained_on():
    rows = [item(f"pair {i}", None, f"a {i // 2}", f"b {(i + 1) // 2}") for i in range(60)]
    rows += [item(f"text {i}") for i in range(60)]
    found = split_rows(rows, SIDES)
    assert {len(set(groups_of(rows)[:60]))} == {1}
    assert all(row in found["train"] for row in rows[:60])
    assert 3 < len(found["test"]) < 25


def shared_pairs():
    """Pairs of which each text is in two: 40 groups of three rows."""
    rows = []
    for i in range(40):
        rows += [
            {"text": f"first {i}", "other": f"second {i}", "label": "yes"},
            {"text": f"first {i}", "other": f"third {i}", "label": "no"},
            {"text": f"fourth {i}", "other": f"third {i}", "label": "yes"},
        ]
    return rows


def assert_apart(*sides):
    for one, other in combinations(sides, 2):
        assert not set(one) & set(other)


@pytest.fixture
def tokenizer(corpus):
    return load_tokenizer(corpus.folder / "tokenizer")


def test_pairs_that_share_either_text_stay_together_in_splits_and_folds(tmp_path, tokenizer):
    config = task(tmp_path, shared_pairs(), pair_column="other")
    splits = read_task(config)
    assert_apart(*({text for row in rows for text in row.texts} for rows in splits.values()))
    found = prepared(config, tokenizer, tmp_path / "tasks")
    assert_folds_apart(found, lambda texts: texts, 4)


def test_the_queries_of_a_fold_are_in_no_other(tmp_path, tokenizer):
    rows = [
        {"query": f"query {i}", "passage": f"passage {(i + j) % 12}", "label": int(j == 0)}
        for i in range(30)
        for j in range(4)
    ]
    found = prepared(task(tmp_path, rows, kind="reranking"), tokenizer, tmp_path / "tasks")
    held_out = assert_folds_apart(found, lambda texts: texts[:1], 5)
    for part in held_out:
        assert set(part.targets) == {0, 1}


def test_the_passages_of_a_fold_are_in_no_other(tmp_path, tokenizer):
    rows = [
        {
            "question": f"question {j}?",
            "context": f"passage {i} has an answer",
            "answers": {"text": ["answer"], "answer_start": [f"passage {i} has an answer".index("answer")]},
        }
        for i in range(20)
        for j in range(3)
    ]
    config = task(tmp_path, rows, kind="question-answering", stride=8)
    found = prepared(config, tokenizer, tmp_path / "tasks")
    assert_folds_apart(found, lambda texts: texts[1:], 4)


def assert_folds_apart(found, texts_of, folds):
    rows = found.split("train").joined(found.split("validation"))
    held_out = []
    for number in range(folds):
        kept, part = rows.fold(number, folds, seed=0)
        assert len(kept) + len(part) == len(rows)
        assert len(part) == pytest.approx(len(rows) / folds, abs=4)
        assert_apart(*({text for texts in side.texts for text in texts_of(texts)} for side in (kept, part)))
        held_out.append(part)
    texts = [tuple(texts) for part in held_out for texts in part.texts]
    assert sorted(texts) == sorted(map(tuple, rows.texts))
    return held_out


def test_a_fold_without_a_query_to_rank_has_no_score_and_does_not_crash(tmp_path, tokenizer):
    rows = [
        {"query": f"query {i}", "passage": f"passage {i} {j}", "label": int(i < 3 and j == 0)}
        for i in range(40)
        for j in range(3)
    ]
    found = prepared(task(tmp_path, rows, kind="reranking"), tokenizer, tmp_path / "tasks")
    joined = found.split("train").joined(found.split("validation"))
    parts = [joined.fold(number, 5, seed=0)[1] for number in range(5)]
    scores = [found.scores(part, [np.zeros(())] * len(part), None)["mrr_at_10"] for part in parts]
    assert 3 <= np.isnan(scores).sum() < 5


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(ConfigError, match="folds: 3, but rows that share a text stay together"):
        deal_groups([0, 0, 1, 1], ["a"] * 4, 3, seed=0)


def test_rows_of_a_group_column_stay_together_and_no_others(tmp_path):
    rows = [row | {"person": i // 6} for i, row in enumerate(shared_pairs())]
    splits = read_task(task(tmp_path, rows, pair_column="other", group_column="person"))
    person = {f"{row['text']} {row['other']}": row["person"] for row in rows}
    sides = [{person[" ".join(row.texts)] for row in side} for side in splits.values()]
    assert_apart(*sides)
    for i, row in enumerate(rows):
        row |= {"text": f"text {i}", "other": "Is it so?"}
    with pytest.raises(ConfigError, match="rows that stay together because they share texts"):
        read_task(task(tmp_path, rows, pair_column="other"))
    splits = read_task(task(tmp_path, rows, pair_column="other", group_column="person"))
    assert all(len(side) > 3 for side in splits.values())
