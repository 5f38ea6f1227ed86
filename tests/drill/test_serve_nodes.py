"""Replicas that reserve cores make nodes come and go, with Ray's autoscaler and its fake nodes."""

import asyncio
import os
import time
from pathlib import Path

import pytest
import ray
import torch
import transformers

from fake_autoscaler import fake_autoscaler
from headway.cluster import connect as cluster
from headway.config.serve import ServeConfig
from headway.data.corpus.tokenizer import train_tokenizer
from headway.serving.deploy import deploy, undeploy
from headway.serving.load_test import apply_load, bodies
from headway.serving.scheduling.messages import Release
from ports import free_port
from waiting import PATIENCE, wait_until

CORES = os.cpu_count() or 1
TEXTS = [f"The sailor steers old boat number {i} before noon." for i in range(2000)]


@pytest.fixture
def address(tmp_path):
    """Of a head with this machine's cores, whose autoscaler may add two nodes that claim as many."""
    with fake_autoscaler(tmp_path, head_cpus=CORES, node_cpus=CORES, most_nodes=2) as found:
        yield found


@pytest.fixture
def encoder(tmp_path) -> Path:
    tokenizer = train_tokenizer(TEXTS[:50], vocab_size=200, lowercase=True, max_length=32)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=4, num_attention_heads=4
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def connect(address: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            cluster.connect(address, "")
            return
        except cluster.ConfigError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_nodes_come_with_replicas_and_go_with_them(address, encoder):
    connect(address)
    try:
        config = ServeConfig(
            model="x",
            replicas=(1, 3),
            replica_cpus=CORES,
            port=free_port(),
            max_batch_tokens=256,
            target_queued_tokens=200,
            downscale_delay_s=2.0,
            request_timeout_s=300.0,
        )
        url = deploy(config, [Release("tiny", "1", str(encoder))], CORES)
        assert nodes() == 1
        most, failed = asyncio.run(load_until_nodes_have_come(f"{url}/v1/embeddings"))
        assert most == 3 and failed == 0
        wait_until(lambda: nodes() == 1)
        # What is left answers.
        result = asyncio.run(apply_load(f"{url}/v1/embeddings", bodies(TEXTS, 50, 1, None), 4))
        assert result.failed == 0
        undeploy()
    finally:
        cluster.disconnect()


async def load_until_nodes_have_come(url: str) -> tuple[int, int]:
    """Rounds of load until there are three nodes; the most seen, and the requests that failed."""
    most = failed = 0
    deadline = time.monotonic() + PATIENCE
    while most < 3 and time.monotonic() < deadline:
        result = await apply_load(url, bodies(TEXTS, 300, 8, None), 64)
        failed += result.failed
        most = max(most, nodes())
    return most, failed
