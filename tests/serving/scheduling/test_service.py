"""Entities against transformers' own pipeline; answers against a search of all spans and the evaluation."""

import asyncio
import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForQuestionAnswering, pipeline

from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.data.corpus.tokenizer import load_tokenizer
from headway.engine.parallel.worker import Worker
from headway.engine.training.scoring import predict
from headway.inference.answers import AnswerSettings
from headway.serving.scheduling import service
from headway.tasks.item import SPLITS, Item
from headway.tasks.preparation import prepare_task

TEXTS = [
    "Captain Ahab hunts the white whale near Nantucket, says Herman Melville.",
    "The sailor steers the old boat; a baker slices fresh bread.",
]
LONG = " ".join(TEXTS * 2)


def test_entities_are_those_of_transformers(serving, folders):
    tagger = pipeline("token-classification", str(folders["tokens"]), aggregation_strategy="first")

    async def run():
        async with serving("tokens") as server:
            answer = await server.post("tokens", input=TEXTS)
            assert sum(len(row["entities"]) for row in answer["data"]) >= 2
            for text, row in zip(TEXTS, answer["data"], strict=True):
                expected = tagger(text)
                tagged = row["entities"]
                assert [e["label"] for e in tagged] == [e["entity_group"] for e in expected]
                assert [(e["start"], e["end"]) for e in tagged] == [(e["start"], e["end"]) for e in expected]
                assert [e["score"] for e in tagged] == pytest.approx([e["score"] for e in expected], abs=1e-4)
                assert all(e["text"] == text[e["start"] : e["end"]] for e in tagged)

    asyncio.run(run())


def test_windows_tag_the_whole_of_a_long_text(serving):
    async def run():
        async with serving("tokens") as server:
            cut = (await server.post("tokens", input=LONG))["data"][0]["entities"]
            whole = (await server.post("tokens", input=LONG, overlong="window"))["data"][0]["entities"]
            assert whole[-1]["end"] > cut[-1]["end"]
            spans = [(entity["start"], entity["end"]) for entity in whole]
            assert spans == sorted(spans)
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))

    asyncio.run(run())


def best_span(folder, question, context):
    """The likeliest span, by a search of all."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForQuestionAnswering.from_pretrained(folder).eval()
    batch = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets = batch.pop("offset_mapping")[0].tolist()
    with torch.inference_mode():
        output = model(**batch)
    inside = [i for i, part in enumerate(batch.sequence_ids(0)) if part == 1]
    first = output.start_logits[0, inside].softmax(-1).numpy()
    last = output.end_logits[0, inside].softmax(-1).numpy()
    spans = [
        (first[i] * last[j], offsets[inside[i]][0], offsets[inside[j]][1])
        for i in range(len(inside))
        for j in range(i, min(len(inside), i + AnswerSettings().max_answer_length))
    ]
    return max(spans)


def test_the_answer_is_the_likeliest_span(serving, folders):
    async def run():
        async with serving("answer") as server:
            for question in ("Who hunts?", "Where is the whale?"):
                answer = await server.post("answer", question=question, context=TEXTS[1], candidates=3)
                score, start, end = best_span(folders["answer"], question, TEXTS[1])
                best, *others = answer["answers"]
                assert (best["start"], best["end"], best["text"]) == (start, end, TEXTS[1][start:end])
                assert best["score"] == pytest.approx(score, abs=1e-4)
                assert all(o["score"] <= best["score"] for o in others)
                assert all(o["end"] <= start or o["start"] >= end for o in others)

    asyncio.run(run())


def test_an_answer_may_stand_where_a_single_window_does_not_reach(serving, folders):
    async def run():
        async with serving("answer") as server:
            answer = await server.post("answer", question="Who?", context=LONG, candidates=20)
            assert max(span["end"] for span in answer["answers"]) > len(LONG) * 0.75
            refused = await server.post("answer", 422, question="who " * 60, context="A boat.")
            assert refused["error"]["type"] == "text_too_long"
            scores = [span["score"] for span in answer["answers"]]
            assert scores == sorted(scores, reverse=True) and np.isfinite(scores).all()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("ability", "name", "body"),
    [
        ("answer", "best_answers", {"question": "Who?", "context": LONG}),
        ("tokens", "entities", {"input": LONG, "overlong": "window"}),
    ],
)
def test_scores_are_searched_off_the_event_loop(serving, monkeypatch, ability, name, body):
    """A long text's search takes as long as hundreds of requests do."""
    threads: list[threading.Thread] = []
    search = getattr(service, name)

    def noted(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return search(*arguments)

    monkeypatch.setattr(service, name, noted)

    async def run():
        async with serving(ability) as server:
            await server.post(ability, **body)
            assert threads and threading.current_thread() not in threads

    asyncio.run(run())


QUESTIONS = ["Who hunts?", "Where is the whale?", "What does the baker slice?", "Who?"]


def evaluated(folder, saved, stores, *, max_answer_length, unanswerable):
    """The evaluation's answers to all questions about all texts, by a model that is then saved."""
    rows = [
        Item((question, text), {"texts": ["The"], "starts": [0]}, [text], "here")
        for question in QUESTIONS
        for text in TEXTS
    ]
    hopeless = [Item((QUESTIONS[0], "A boat."), {"texts": [], "starts": []}, ["A boat."], "here")]
    splits = dict.fromkeys(SPLITS, rows) | {"train": rows + hopeless * unanswerable}
    settings = {"max_answer_length": max_answer_length, "stride": 4}
    kind = "question-answering"
    tokenizer = load_tokenizer(folder)
    task: Any = prepare_task(splits, tokenizer, stores, kind=kind, max_length=32, settings=settings)
    config = validate(FinetuneConfig, {"model": str(folder), "task": str(task.folder)})
    model, test = task.load(folder, config), task.split("test")
    batches = task.batches(test, tokenizer, batch_size=4)
    outputs = predict(task.objective(model, config, test), batches, Worker(), batch_size=4, precision="fp32")
    task.save(model, folder, saved)
    return list(test.texts), task.answers(test, outputs.rows, batches)


@pytest.mark.parametrize(("max_answer_length", "unanswerable"), [(2, False), (30, False), (2, True)])
def test_the_server_answers_as_the_evaluation_does(
    serving, folders, tmp_path, max_answer_length, unanswerable
):
    pairs, expected = evaluated(
        folders["answer"],
        tmp_path / "model",
        tmp_path / "stores",
        max_answer_length=max_answer_length,
        unanswerable=unanswerable,
    )
    assert unanswerable == ("" in expected)

    async def run():
        async with serving("answer", folder=tmp_path / "model") as server:
            answers = [await server.post("answer", question=q, context=c) for q, c in pairs]
            assert [answer["answers"][0]["text"] for answer in answers] == expected

    asyncio.run(run())
