"""A table of token vectors that takes the place of an encoder on a running server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from headway.compress.static import distil_table
from headway.data.corpus.tokenizer import load_tokenizer
from headway.engine.model.encoder import label_settings, load_model, save_model
from headway.inference.model import EncoderModel
from headway.inference.predictor import Predictor
from headway.serving.rollout.rollout import VersionState
from headway.serving.scheduling.messages import Release

TEXTS = ["The sailor steers the old boat.", "A baker slices bread.", "Quiet!"]


@pytest.fixture
def table(folders, tmp_path):
    """A classifier of three classes on a table made of the served encoder."""
    tokenizer = load_tokenizer(folders["embeddings"])
    model = distil_table(EncoderModel(folders["embeddings"], "fp32"), tokenizer, 16, 1e-4).model
    for folder in (tmp_path / "table", tmp_path / "classifier"):
        folder.mkdir()
        save_model(model, folder)
        tokenizer.save_pretrained(folder)
        labels = label_settings(["kitchen", "harbour", "garden"])
        model = load_model(
            tmp_path / "table", AutoModelForSequenceClassification, random_weights=False, seed=0, **labels
        )
    return tmp_path / "classifier"


def test_a_table_takes_an_encoders_place_and_gives_it_back(serving, folders, table):
    release = Release("tiny", "8", str(table))

    async def inside() -> None:
        async with serving("classify") as server:
            before = await server.post("classify", input=TEXTS)
            assert await server.rollout.switch(release) is None
            assert server.rollout.state_of(release) is VersionState.SERVING
            answers = await server.post("classify", input=TEXTS)
            vectors = await server.post("embeddings", input=TEXTS)
            refused = await server.post("attention", status=422, input="Quiet!")
            assert await server.rollout.switch(Release("tiny", "7", str(folders["classify"]))) is None
            after = await server.post("classify", input=TEXTS)
        assert answers["version"] == "8"
        expected = Predictor(table, precision="fp32").rows(TEXTS)
        assert [item["label"] for item in answers["data"]] == [row["label"] for row in expected]
        for item, row in zip(answers["data"], expected, strict=True):
            assert item["score"] == pytest.approx(row["score"])
        rows = Predictor(table, "embedding", precision="fp32").rows(TEXTS)
        for item, row in zip(vectors["data"], rows, strict=True):
            np.testing.assert_allclose(item["embedding"], row["embedding"], atol=1e-6)
        assert "cannot attention" in str(refused)
        assert after["data"] == before["data"]

    asyncio.run(inside())
