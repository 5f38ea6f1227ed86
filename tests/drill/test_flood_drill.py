"""The flood drill, shortened: nobody else's request fails, and the flood itself is held back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "flood_drill.py"


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_clients_beside_a_flood_lose_no_request():
    command = [sys.executable, str(SCRIPT), "--seconds", "15"]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    assert result["failed"] == 0 and result["requests"] > 64
    assert result["flooder"]["idle sockets"] == 500 and result["flooder"]["bodies cut off"] >= 50
    assert result["memory_after_mb"] < result["memory_before_mb"] + 64
