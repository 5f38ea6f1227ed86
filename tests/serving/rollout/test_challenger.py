"""A challenger beside the serving version: the requests it answers, and comparisons while idle."""

import asyncio
import contextlib
import time

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from headway.config.serve import ChallengerConfig
from headway.serving.scheduling.messages import LoadedRelease, Release
from waiting import PATIENCE

TEXTS = [f"The sailor steers boat {i}." for i in range(200)]


@pytest.fixture(scope="module")
def challenger(folders, tmp_path_factory):
    """A classifier with the same labels and other weights."""
    folder = tmp_path_factory.mktemp("challenger")
    torch.manual_seed(77)
    config = BertForSequenceClassification.from_pretrained(folders["classify"]).config
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folders["classify"]).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def tried(server, folder, **percentages):
    release = LoadedRelease.open(Release("tiny", "8", str(folder)))
    config = ChallengerConfig(alias="challenger", **percentages)
    server.rollout.start_challenge(release, config)
    yield server.rollout.challenger
    server.rollout.end_challenge()


@torch.inference_mode()
def probabilities(folder, texts):
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    return model(**batch).logits.softmax(-1).numpy()


async def report(server):
    (row,) = (await server.client.get("/v1/trials")).json()["data"]
    return row


async def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_some_requests_are_answered_by_the_challenger_alone(serving, folders, challenger):
    expected = {"7": probabilities(folders["classify"], TEXTS), "8": probabilities(challenger, TEXTS)}

    async def run():
        async with serving("classify") as server:
            with tried(server, challenger, percent=25):
                # Every question twice at the same time: equal work is shared, but never between versions.
                asked = [server.post("classify", input=text) for text in TEXTS * 2]
                answers = await asyncio.gather(*asked)
                versions = [answer["version"] for answer in answers]
                assert versions[: len(TEXTS)] == versions[len(TEXTS) :]
                assert 30 <= versions[: len(TEXTS)].count("8") <= 70
                for i, answer in enumerate(answers):
                    scores = list(answer["data"][0]["scores"].values())
                    assert scores == pytest.approx(
                        expected[answer["version"]][i % len(TEXTS)].tolist(), abs=1e-5
                    )
                assert (await report(server))["answered"] == versions.count("8")
            assert {(await server.post("classify", input=text))["version"] for text in TEXTS[:40]} == {"7"}
            assert (await server.client.get("/v1/trials")).json()["data"] == []

    asyncio.run(run())


def test_the_report_says_how_the_versions_differ(serving, folders, challenger):
    texts = [*TEXTS[:20], "A baker slices fresh bread.", "Quiet!", "Captain Ahab hunts the white whale."]
    ours, theirs = probabilities(folders["classify"], texts), probabilities(challenger, texts)

    async def run():
        async with serving("classify") as server:
            with tried(server, challenger, shadow_percent=100) as trying:
                answers = [await server.post("classify", input=text) for text in texts]
                assert {answer["version"] for answer in answers} == {"7"}
                await wait_until(lambda: trying.comparisons["classify"].compared == len(texts))
                row = await report(server)
                figures = row["operations"]["classify"]
                assert (row["version"], row["against"], row["shed"], row["failed"]) == ("8", "7", 0, 0)
                agreement = (ours.argmax(1) == theirs.argmax(1)).mean()
                assert figures["agreement"] == pytest.approx(agreement, abs=1e-4)
                assert figures["greatest_difference"] == pytest.approx(np.abs(ours - theirs).max(), abs=1e-4)
                assert all(figures[side]["p50"] > 0 for side in ("served_ms", "challenger_ms"))

    asyncio.run(run())


def test_vectors_of_both_are_compared_by_their_cosine(serving, folders):
    async def run():
        async with serving("embeddings", cache_size=100) as server:
            with tried(server, folders["embeddings"], shadow_percent=100) as trying:
                await server.post("embeddings", input=TEXTS[:50])
                await wait_until(lambda: "embeddings" in trying.comparisons)
                figures = (await report(server))["operations"]["embeddings"]
                # A long request is compared on its beginning.
                assert figures["compared"] == 8 and figures["min_cosine"] == pytest.approx(1.0, abs=1e-4)
                # Neither version's figure comes from the cache.
                assert [pack[0].release.version for pack in server.replica.packs] == ["7", "7", "8"]

    asyncio.run(run())


def test_a_challenger_that_cannot_answer_costs_no_request(serving, folders):
    async def run():
        async with serving("classify") as server:
            with tried(server, folders["embeddings"], shadow_percent=100) as trying:
                assert (await server.post("classify", input=TEXTS[0]))["version"] == "7"
                await wait_until(lambda: trying.failed)
                row = await report(server)
                assert "cannot classify" in row["problem"] and row["operations"] == {}

    asyncio.run(run())


def test_comparisons_are_what_is_shed_under_load(serving, challenger):
    async def run():
        async with serving("classify") as server:
            with tried(server, challenger, shadow_percent=100) as trying:
                server.dispatcher.call, compute = never, server.dispatcher.call
                held = asyncio.create_task(server.post("classify", input="Held back."))
                await wait_until(lambda: not server.dispatcher.idle)
                server.dispatcher.call = compute
                await asyncio.gather(*(server.post("classify", input=text) for text in TEXTS))
                # Every user was answered; no comparison was begun while the replica had work.
                assert {pack[0].release.version for pack in server.replica.packs} == {"7"}
                assert trying.shed > 100 and trying.comparisons == {}
                held.cancel()

    async def never(kind, pack):
        await asyncio.sleep(60)

    asyncio.run(run())
