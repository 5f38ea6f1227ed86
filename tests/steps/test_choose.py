"""The step `choose`: the best of several models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import accuracy_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from headway.config.evaluate import ChooseConfig
from headway.config.tasks import ClassificationTask
from headway.inference.predictor import Predictor
from headway.steps.choose import run_choose
from headway.tasks.preparation import read_task


@pytest.fixture(scope="module")
def task(labelled_file) -> ClassificationTask:
    return ClassificationTask(source=str(labelled_file), max_length=48)


@pytest.fixture
def worse(classifier, tmp_path) -> Path:
    """The same classifier, whose head answers the opposite."""
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    with torch.no_grad():
        model.classifier.weight.neg_()
        model.classifier.bias.neg_()
    model.save_pretrained(tmp_path / "worse")
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path / "worse")
    return tmp_path / "worse"


def accuracy(model: Path, task: ClassificationTask, split: str) -> float:
    items = read_task(task)[split]
    answers = [answer["label"] for answer in Predictor(model).rows([item.texts[0] for item in items])]
    return float(accuracy_score([item.target for item in items], answers))


def test_the_model_with_the_best_score_on_validation_rows_is_handed_on(
    classifier, worse, task, make_context, runs
):
    config = ChooseConfig(among={"worse": str(worse), "better": str(classifier)}, task=task)
    result = run_choose(config, make_context("choose", runs))
    assert result.output == str(classifier.resolve())
    assert result.summary["chosen"] == "better"
    for name, model in (("worse", worse), ("better", classifier)):
        expected = accuracy(model, task, "validation")
        assert result.summary["accuracy"][name] == pytest.approx(expected)
        assert f"{expected:.4f}" in result.headline


def test_of_equally_good_models_the_first_is_chosen(classifier, task, make_context, runs):
    config = ChooseConfig(among={"b": str(classifier), "a": str(classifier)}, task=task)
    assert run_choose(config, make_context("choose-equal", runs)).summary["chosen"] == "b"


def test_a_single_model_is_no_choice(classifier, task):
    with pytest.raises(ValidationError, match="at least 2"):
        ChooseConfig(among={"only": str(classifier)}, task=task)
