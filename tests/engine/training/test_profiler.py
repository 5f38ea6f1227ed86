"""Profiling: a trace that opens, and operations that add up."""

import json

from tiny_training import tiny_batches, tiny_config, tiny_objective

from headway.engine.training.profiler import profile_steps
from headway.engine.training.trainer import Trainer


def test_profile_names_the_costliest_operations_and_writes_a_trace(tmp_path):
    trainer = Trainer(tiny_objective(), tiny_batches(), tiny_config(steps=5))
    operations = profile_steps(trainer, 2, tmp_path / "trace.json", limit=10)
    times = [operation.milliseconds for operation in operations]
    assert len(operations) == 10 and times == sorted(times, reverse=True)
    assert 0 < sum(operation.fraction for operation in operations) <= 1
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert operations[0].name in names
