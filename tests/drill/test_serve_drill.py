"""The serving drill, shortened: replicas and the gateway killed, the alias moved, and nothing lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_drill.py"


@pytest.mark.drill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert"])
def test_nothing_is_lost_when_replicas_die_and_versions_change(architecture):
    short = ["--requests", "600", "--moves", "2", "--kills", "3", "--architectures", architecture]
    output = subprocess.run([sys.executable, str(SCRIPT), *short], capture_output=True, text=True, check=True)
    result = json.loads(output.stdout.splitlines()[-1])[architecture]
    assert (result["failed"], result["wrong"], result["mixed_versions"]) == (0, 0, 0)
    assert result["requests"] >= 600 and result["answers_by_operation"]["attention"] >= 50
    assert result["killed"] >= 3 and result["alias_moves"] == 2
    assert set(result["answers_by_version"]) == {"1", "2"}
    assert result["most_replicas"] == 4 and result["replicas_at_the_end"] == 1
    assert list(result["refused"]) == ["3"] and result["answers_after_it"]
    assert result["poison"] == [500, "lethal_input"]
    assert result["gateway_came_back_the_same"]
