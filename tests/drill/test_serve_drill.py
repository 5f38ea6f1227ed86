"""The serving drill, shortened: replicas killed and the alias moved under load, and nothing lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_drill.py"


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_nothing_is_lost_when_replicas_die_and_versions_change():
    command = [sys.executable, str(SCRIPT), "--requests", "1500", "--moves", "2"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = json.loads(output.splitlines()[-1])
    assert (result["failed"], result["wrong"], result["mixed_versions"]) == (0, 0, 0)
    assert result["requests"] >= 1500 and result["killed"] >= 2 and result["alias_moves"] == 2
    assert set(result["answers_by_version"]) == {"1", "2"}
    assert result["most_replicas"] > 1 and result["replicas_at_the_end"] == 1
