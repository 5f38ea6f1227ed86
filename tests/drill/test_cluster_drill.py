"""A cluster launched over SSH loses a cable and a machine during pretraining, and nothing changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "cluster_drill.py"


@pytest.mark.drill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "hosts", [pytest.param([], marks=pytest.mark.long, id="hosts"), pytest.param(["--local"], id="nodes")]
)
def test_struck_job_ends_with_the_bits_of_an_untouched_one(hosts: list[str]) -> None:
    command = [sys.executable, str(BENCHMARK), "--steps", "100", *hosts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1790)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["faults"]) == 2
    assert result["identical"]
    assert result["rows_seen_once"]
