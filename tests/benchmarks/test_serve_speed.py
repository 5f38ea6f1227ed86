"""A server that fails costs its own row, and what the others showed is reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lib.serve_peers import Peer
from serve_speed import measured_or_why_not, report, summary


def measured(texts_per_second: float) -> dict[str, Any]:
    figures = {
        "texts_per_second": texts_per_second,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "failed": 0,
        "client_cpu_share": 0.1,
    }
    return {
        "cold_start_s": 1.0,
        "cpu": {},
        "vectors": np.eye(2),
        **dict.fromkeys(("one", "batch", "alone"), figures),
    }


def install() -> Peer:
    subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=True)
    raise AssertionError


@pytest.fixture(autouse=True)
def logs_go_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr("serve_speed.PEERS", tmp_path / "peers")


def test_a_server_that_ends_at_once_is_a_reason_in_one_line():
    peer = Peer([sys.executable, "-c", "raise SystemExit(1)"], 18399)
    reason = measured_or_why_not("peer", lambda: peer, ["text"], 0.1)
    assert isinstance(reason, str)
    assert "did not come up" in reason
    assert "\n" not in reason


def test_one_that_cannot_be_installed_is_a_reason_too():
    reason = measured_or_why_not("peer", install, ["text"], 0.1)
    assert isinstance(reason, str)
    assert "exit status 3" in reason


@pytest.mark.parametrize("failed", ["mlflow", "infinity", "headway", "headway-int8"])
def test_what_the_others_showed_is_kept(failed, capsys, monkeypatch):
    names = ["headway", "headway-int8", "infinity", "mlflow"]
    outcomes: dict[str, dict[str, Any] | str] = {name: measured(10.0) for name in names}
    outcomes[failed] = "it did not come up"
    monkeypatch.setattr("serve_speed.flops_a_text", lambda texts, model: 1.0)
    report(outcomes, 1e9, [], Path())
    *rows, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert [row.split()[0] for row in rows[1:]] == names
    assert figures["did_not_run"] == {failed: "it did not come up"}
    assert figures.get("ratio_vs_mlflow") == (None if failed in ("mlflow", "headway") else 1.0)


def test_ratios_are_ours_by_theirs():
    figures = summary({"headway": measured(30.0), "infinity": measured(10.0)}, 1e9, 1.0)
    assert figures["ratio_vs_infinity"] == 3.0
    assert figures["int8_ratio_vs_infinity"] is None
