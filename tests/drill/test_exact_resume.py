"""Workers, nodes and drivers are killed in the middle of pretraining, and nothing changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "exact_resume.py"


@pytest.mark.drill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kills", "steps"), [pytest.param(4, 60, id="short"), pytest.param(8, 130, marks=pytest.mark.long)]
)
def test_killed_run_ends_with_the_bits_of_an_untouched_one(kills: int, steps: int) -> None:
    command = [sys.executable, str(BENCHMARK), "--kills", str(kills), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1790)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == kills
    assert result["identical"]
    assert result["rows_seen_once"]
