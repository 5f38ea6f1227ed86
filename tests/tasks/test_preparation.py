"""Prepared tasks, prepared again for other tokens."""

from __future__ import annotations

from headway.config.tasks import ClassificationTask
from headway.data.corpus.tokenizer import load_tokenizer, train_tokenizer
from headway.tasks.item import SPLITS
from headway.tasks.preparation import prepared, retokenized


def test_a_retokenized_task_has_the_same_rows_in_the_same_splits(labelled_file, encoder, texts, tmp_path):
    config = ClassificationTask(source=str(labelled_file), max_length=48)
    task = prepared(config, load_tokenizer(encoder), tmp_path)
    other = train_tokenizer(texts, vocab_size=80, lowercase=False, max_length=64)
    again = retokenized(task, other, tmp_path)
    assert again.folder != task.folder
    assert (again.kind, again.max_length, again.labels) == (task.kind, task.max_length, task.labels)
    assert again.facts["digests"] == task.facts["digests"]
    for name in SPLITS:
        before, after = task.split(name), again.split(name)
        assert (after.texts, after.targets, after.classes) == (before.texts, before.targets, before.classes)
        assert after.groups == before.groups
    row = again.split("train")
    assert row.tokens[0][0].tolist() == other(row.texts[0][0], add_special_tokens=False)["input_ids"]
    assert retokenized(task, load_tokenizer(encoder), tmp_path).split("test").tokens[0][0].tolist() == (
        task.split("test").tokens[0][0].tolist()
    )
