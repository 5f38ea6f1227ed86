"""Every operation over HTTP, its numbers compared with transformers' own padded forward."""

import asyncio
import base64

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer

from headway.serving.scheduling.messages import Release

TEXTS = [
    "The sailor steers the old boat before noon.",
    "A baker slices fresh bread every morning.",
    "Quiet!",
    "The florist waters a small rose in the evening; the child plants an apple.",
]
LONG = " ".join(TEXTS * 3)


def reference(folder, architecture):
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def padded(folder, architecture, texts, pairs=None):
    """transformers' outputs and the attention mask for some texts, padded together."""
    model, tokenizer = reference(folder, architecture)
    batch = tokenizer(texts, pairs, padding=True, truncation=True, max_length=32, return_tensors="pt")
    return model(**batch), batch["attention_mask"]


def expected_embeddings(folder, texts):
    output, mask = padded(folder, "BertModel", texts)
    sums = (output.last_hidden_state * mask[..., None]).sum(1)
    return torch.nn.functional.normalize(sums, dim=-1).numpy()


def test_embeddings_are_those_of_transformers(serving, folders):
    async def run():
        async with serving("embeddings") as server:
            answer = await server.post("embeddings", input=[*TEXTS, LONG], model="tiny")
            embeddings = np.asarray([row["embedding"] for row in answer["data"]])
            np.testing.assert_allclose(
                embeddings, expected_embeddings(folders["embeddings"], [*TEXTS, LONG]), atol=1e-5
            )
            assert (answer["model"], answer["version"]) == ("tiny", "7")
            single = await server.post("embeddings", input=TEXTS[0], encoding_format="base64", dimensions=8)
            short = np.frombuffer(base64.b64decode(single["data"][0]["embedding"]), "<f4")
            np.testing.assert_allclose(
                short, embeddings[0, :8] / np.linalg.norm(embeddings[0, :8]), atol=1e-5
            )

    asyncio.run(run())


def test_windows_read_what_truncation_drops(serving, folders):
    tail = LONG + " Captain Ahab hunts the white whale."

    async def run():
        async with serving("embeddings") as server:
            cut = await server.post("embeddings", input=[LONG, tail])
            assert cut["data"][0]["embedding"] == pytest.approx(cut["data"][1]["embedding"], abs=1e-6)
            read = await server.post("embeddings", input=[LONG, tail], overlong="window")
            first, second = (np.asarray(row["embedding"]) for row in read["data"])
            assert first @ second < 0.9999 and np.linalg.norm(second) == pytest.approx(1.0, abs=1e-5)
            refused = await server.post("embeddings", 422, input=[TEXTS[0], LONG], overlong="reject")
            assert refused["error"]["type"] == "text_too_long" and "text 1" in refused["error"]["message"]

    asyncio.run(run())


def test_classes_are_those_of_transformers(serving, folders):
    async def run():
        async with serving("classify") as server:
            answer = await server.post("classify", input=TEXTS)
            output, _ = padded(folders["classify"], "BertForSequenceClassification", TEXTS)
            expected = output.logits.softmax(-1)
            labels = ["kitchen", "harbour", "garden"]
            for row, probabilities in zip(answer["data"], expected.tolist(), strict=True):
                assert row["scores"] == pytest.approx(dict(zip(labels, probabilities, strict=True)), abs=1e-5)
                assert row["label"] == labels[int(np.argmax(probabilities))]
                assert row["score"] == max(row["scores"].values())

    asyncio.run(run())


def test_reranking_orders_by_cosine(serving, folders):
    async def run():
        async with serving("embeddings") as server:
            answer = await server.post(
                "rerank", query=TEXTS[0], documents=TEXTS[1:], top_n=2, return_documents=True
            )
            query, *documents = expected_embeddings(folders["embeddings"], TEXTS)
            cosines = np.asarray(documents) @ query
            order = np.argsort(-cosines)[:2]
            assert [row["index"] for row in answer["results"]] == order.tolist()
            assert [row["document"] for row in answer["results"]] == [TEXTS[1 + i] for i in order]
            scores = [row["relevance_score"] for row in answer["results"]]
            assert scores == pytest.approx(cosines[order].tolist(), abs=1e-5)

    asyncio.run(run())


def test_a_cross_encoder_scores_pairs(serving, folders, tmp_path):
    _, tokenizer = reference(folders["embeddings"], "BertModel")
    config = transformers.AutoConfig.from_pretrained(folders["embeddings"], num_labels=1)
    torch.manual_seed(9)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    async def run():
        async with serving("classify", folder=tmp_path) as server:
            answer = await server.post("rerank", query=TEXTS[2], documents=TEXTS[:2])
            output, _ = padded(tmp_path, "BertForSequenceClassification", [TEXTS[2]] * 2, TEXTS[:2])
            scores = {row["index"]: row["relevance_score"] for row in answer["results"]}
            assert [scores[0], scores[1]] == pytest.approx(output.logits[:, 0].tolist(), abs=1e-5)

    asyncio.run(run())


def test_masked_words_are_those_of_transformers(serving, folders):
    text = "The [MASK] steers the old [MASK] before noon."

    async def run():
        async with serving("fill-mask") as server:
            answer = await server.post("fill-mask", input=[text, "No mask here."], candidates=3)
            model, tokenizer = reference(folders["fill-mask"], "BertForMaskedLM")
            batch = tokenizer(text, return_tensors="pt")
            with torch.inference_mode():
                scores = (
                    model(**batch).logits[0, batch["input_ids"][0] == tokenizer.mask_token_id].softmax(-1)
                )
            best = scores.topk(3)
            for candidates, words, values in zip(
                answer["data"][0]["masks"], best.indices, best.values, strict=True
            ):
                assert [row["token"] for row in candidates] == tokenizer.convert_ids_to_tokens(words)
                assert [row["score"] for row in candidates] == pytest.approx(values.tolist(), abs=1e-5)
            assert answer["data"][1]["masks"] == []

    asyncio.run(run())


def test_attention_is_that_of_transformers(serving, folders):
    async def run():
        async with serving("embeddings") as server:
            answer = await server.post("attention", input=TEXTS[0], tokens=8)
            model, tokenizer = reference(folders["embeddings"], "BertModel")
            model.set_attn_implementation("eager")
            batch = tokenizer(TEXTS[0], truncation=True, max_length=8, return_tensors="pt")
            with torch.inference_mode():
                expected = torch.cat(model(**batch, output_attentions=True).attentions).numpy()
            assert answer["tokens"] == tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
            np.testing.assert_allclose(np.asarray(answer["weights"]), expected, atol=1e-3)

    asyncio.run(run())


def test_a_model_says_what_it_cannot_do(serving):
    async def run():
        async with serving("embeddings") as server:
            error = (await server.post("classify", 422, input="x"))["error"]
            assert error == {
                "type": "not_able",
                "message": "tiny cannot classify; it can: embeddings, attention, rerank",
                "param": None,
            }
            assert (await server.post("embeddings", 404, input="x", model="other"))["error"][
                "type"
            ] == "not_found"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"input": 3}', "input"),
        (b'{"input": []}', "input"),
        (b'{"input": ["a", null]}', "input"),
        (b'{"inputs": "a"}', "input"),
        (b'{"input": NaN}', "input"),
        (b'{"input": "\\ud800"}', "input"),
        (b'{"input": "a", "dimensions": 0}', "dimensions"),
        (b'{"input": "a"', "body"),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b"", "body"),
        (b"null", "body"),
    ],
)
def test_a_malformed_body_is_told_in_one_typed_line(serving, body, param):
    async def run():
        async with serving("embeddings") as server:
            headers = {"content-type": "application/json"}
            response = await server.client.post("/v1/embeddings", content=body, headers=headers)
            assert response.status_code in (400, 422), response.text
            error = response.json()["error"]
            assert error["type"] == "invalid_request" and error["message"]
            if param is not None:
                assert error["param"].startswith(param)

    asyncio.run(run())


def test_limits_on_bodies_and_deadlines(serving):
    async def run():
        async with serving("embeddings", timeout=0.2) as server:
            assert (await server.post("embeddings", 413, input="x" * 100_001))["error"][
                "type"
            ] == "body_too_large"

            async def endless():
                while True:
                    yield b" " * 10_000

            response = await server.client.post("/v1/embeddings", content=endless())
            assert response.status_code == 413
            server.replica.gate.clear()
            assert (await server.post("embeddings", 504, input="x"))["error"]["type"] == "deadline_passed"
            short = {"x-request-timeout-seconds": "0.01"}
            response = await server.client.post("/v1/embeddings", json={"input": "y"}, headers=short)
            assert response.status_code == 504 and "0.01 s" in response.text
            response = await server.client.post(
                "/v1/embeddings", json={"input": "y"}, headers={"x-request-timeout-seconds": "nan"}
            )
            assert response.status_code == 422
            server.replica.gate.set()
            await server.post("embeddings", input="x")

    asyncio.run(run())


def test_a_full_queue_is_503_with_the_time_to_come_back(serving):
    async def run():
        async with serving("embeddings", pack_tokens=16, max_tokens=80) as server:
            server.replica.gate.clear()
            texts = [f"{TEXTS[0]} {word} boat" for word in ("bread", "rose", "apple", "ferry", "whale")]
            waiting = []
            for known, text in enumerate(texts, 1):
                waiting.append(asyncio.create_task(server.post("embeddings", input=text)))
                while known > len(server.replica.packs) + server.rollout.serving.queue.waiting_tokens // 12:
                    await asyncio.sleep(0.01)
            response = await server.client.post("/v1/embeddings", json={"input": LONG})
            assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "queue_full"
            server.replica.gate.set()
            await asyncio.gather(*waiting)

    asyncio.run(run())


def test_state_and_metrics(serving):
    async def run():
        async with serving("fill-mask") as server:
            assert (await server.client.get("/health/live")).json() == {"status": "live"}
            ready = (await server.client.get("/health/ready")).json()
            assert ready == {"status": "ready", "model": "tiny", "version": "7"}
            (model,) = (await server.client.get("/v1/models")).json()["data"]
            assert model["mask"] == "[MASK]" and model["layers"] == 2 and model["max_length"] == 32
            await server.post("embeddings", input="x")
            await server.post("classify", 422, input="x")
            text = (await server.client.get("/metrics")).text
            assert 'headway_requests_total{path="/v1/embeddings",status="200"} 1.0' in text
            assert 'headway_requests_total{path="/v1/classify",status="422"} 1.0' in text
            assert 'headway_request_seconds_count{path="/v1/embeddings"} 1.0' in text

    asyncio.run(run())


def test_candidates_for_masks_are_bounded_in_one_request(serving):
    ten_masks = " ".join(["[MASK]"] * 10)

    async def run():
        async with serving("fill-mask") as server:
            refused = await server.post("fill-mask", 413, input=[ten_masks] * 21, candidates=100)
            assert "210 masks with 100 candidates each" in refused["error"]["message"]
            assert "at most 20,000 candidates" in refused["error"]["message"]
            allowed = await server.post("fill-mask", input=[ten_masks] * 20, candidates=100)
            assert sum(len(mask) for text in allowed["data"] for mask in text["masks"]) == 20_000

    asyncio.run(run())


def test_a_request_is_answered_by_one_version_to_its_end(serving, folders):
    async def run():
        async with serving("classify") as server:
            server.replica.gate.clear()
            asked = asyncio.create_task(server.post("classify", input=TEXTS[0]))
            while not server.replica.packs:
                await asyncio.sleep(0.01)
            assert await server.rollout.switch(Release("tiny", "8", str(folders["tokens"]))) is None
            server.replica.gate.set()
            answer = await asked
            assert answer["version"] == "7"
            assert list(answer["data"][0]["scores"]) == ["kitchen", "harbour", "garden"]
            assert (await server.post("embeddings", input=TEXTS[0]))["version"] == "8"

    asyncio.run(run())
