"""What a replica does with the cores it was given."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, torch
from headway.serving.scheduling.compute_threads import compute_threads
matrix = torch.randn(512, 512)  # in bfloat16 one thread computes it where the processor has none

def helpers():
    before = set(os.listdir("/proc/self/task"))
    for _ in range(5):
        matrix @ matrix
    return len(set(os.listdir("/proc/self/task")) - before)

print(compute_threads(1, int(sys.argv[1])).submit(helpers).result())
"""


@pytest.mark.parametrize("cores", [1, 2])
def test_products_take_the_cores_of_the_replica_and_no_more(cores):
    # Ray starts its workers with OMP_NUM_THREADS=1 where an actor asks for no whole core.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(cores)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert int(output) == cores - 1
