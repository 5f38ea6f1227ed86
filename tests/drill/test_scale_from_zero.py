"""A pretraining run on a cluster without a node that trains: the autoscaler adds them, and the run grows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fake_autoscaler import fake_autoscaler
from headway.cluster.address import address_problem
from waiting import PATIENCE, wait_until


def headway(folder: Path, address: str, workers: int | list[int]) -> subprocess.CompletedProcess[str]:
    pipeline = json.loads((folder / "pipeline.json").read_text())
    pipeline["steps"]["pretrain"]["workers"] = workers
    (folder / "pipeline.json").write_text(json.dumps(pipeline))
    command = [sys.executable, "-m", "headway.cli.main", "run", "pipeline.json", "--address", address]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture
def project(tmp_path, labelled_file, tiny_shape) -> Path:
    pretrain = {
        "use": "pretrain",
        "corpus": {"source": str(labelled_file), "vocab_size": 300, "max_length": 32},
        "model": tiny_shape,
        "steps": 6000,  # longer than Ray Train takes to look for more nodes, half a minute
        "batch_size": 32,
        "evaluate_every": 6000,
        "log_rows": True,
    }
    (tmp_path / "pipeline.json").write_text(json.dumps({"name": "zero", "steps": {"pretrain": pretrain}}))
    return tmp_path


@pytest.mark.drill
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_run_starts_from_no_node_grows_and_ends(project):
    with fake_autoscaler(project, head_cpus=0, node_cpus=1, most_nodes=2) as address:
        wait_until(lambda: address_problem(address) is None)
        began = time.monotonic()
        refused = headway(project, address, workers=3)
        assert refused.returncode == 2
        assert "workers: 3 is more than the cluster has cores, or can add; free now: 0" in refused.stderr
        assert time.monotonic() - began < 300.0, "it was waited for"
        done = headway(project, address, workers=[1, 2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting for nodes for 1 worker, 0 fit now" in done.stdout
    [rows] = project.glob("runs/zero/pretrain/*/rows")
    assert {file.stem for file in rows.iterdir()} == {"0", "1"}, "it did not grow"
    summary = json.loads((project / "runs" / "zero" / "summary.json").read_text())
    assert summary["pretrain"]["validation_loss_end"] < summary["pretrain"]["validation_loss_start"]
