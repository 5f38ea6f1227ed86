"""What a replica does with its cores and its GPU, and when the GPU is lost."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from ray import serve

from headway.inference.golden import FILE, store_golden
from headway.inference.packing import Operation, Pack
from headway.serving.autoscaling import UNANSWERED
from headway.serving.scheduling import replica
from headway.serving.scheduling.messages import Release
from headway.serving.settings import ReplicaSettings
from waiting import PATIENCE

SCRIPT = """
import os, sys, torch
from headway.serving.scheduling.compute_threads import thread_pool
matrix = torch.randn(512, 512)  # in bfloat16 one thread computes it if the CPU has no instruction for it

def helpers():
    before = set(os.listdir("/proc/self/task"))
    for _ in range(5):
        matrix @ matrix
    return len(set(os.listdir("/proc/self/task")) - before)

print(thread_pool(1, int(sys.argv[1])).submit(helpers).result())
"""


@pytest.mark.parametrize("cores", [1, 2])
def test_products_take_the_cores_of_the_replica_and_no_more(cores):
    # Ray starts its workers with OMP_NUM_THREADS=1 if an actor asks for less than a core.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(cores)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert int(output) == cores - 1


class Ended(BaseException):
    """Raised instead of ending the process."""


@pytest.fixture
def outside_ray(monkeypatch):
    """Lets a replica be made in this process, with the resources that Ray would assign to it."""
    resources: dict[str, float] = {}
    identity = SimpleNamespace(unique_id="replica-1")
    context = SimpleNamespace(get_assigned_resources=lambda: resources)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(replica_id=identity))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    return resources


def replica_of(folder) -> tuple[replica.Encoder, Release]:
    release = Release("tiny", "1", str(folder))
    return replica.Encoder(release, ReplicaSettings(1, "fp32")), release


def test_no_replica_starts_with_a_version_that_departs_from_its_stored_answers(
    outside_ray, folders, tmp_path
):
    shutil.copytree(folders["classify"], tmp_path / "model")
    store_golden(tmp_path / "model", ["Quiet!", "A baker slices bread."])
    _, release = replica_of(tmp_path / "model")
    path = tmp_path / "model" / FILE
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"outputs": [row[::-1] for row in stored["outputs"]]}))
    with pytest.raises(replica.WrongAnswersError, match="away from the stored one"):
        replica_of(tmp_path / "model")
    good, _ = replica_of(folders["classify"])
    for _ in range(2):
        assert "away from the stored one" in str(asyncio.run(good.prepare(release)))
    assert list(good._models) == [Release("tiny", "1", str(folders["classify"]))]


@pytest.mark.parametrize(("gpus", "limits"), [(0.25, [(0.25, 0)]), (1.0, [])])
def test_a_replica_takes_its_gpu_and_no_more_of_the_memory_than_its_fraction(
    outside_ray, monkeypatch, gpus, limits
):
    taken: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: taken.append(limit))
    outside_ray["GPU"] = gpus
    assert replica._assigned_device() == torch.device("cuda", 0)
    assert taken == limits


def test_a_replica_without_an_assigned_gpu_uses_none_that_it_sees(outside_ray, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert replica._assigned_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (ValueError("token 9 is not among the model's 5"), False),
    ],
)
def test_a_replica_ends_if_its_gpu_is_lost_and_only_then(outside_ray, folders, monkeypatch, error, ends):
    encoder, release = replica_of(folders["embeddings"])

    compute = encoder._models[release].run

    def fail(operation, computed):
        if len(computed.ids) == len(pack.ids):
            raise error
        return compute(operation, computed)

    monkeypatch.setattr(encoder._models[release], "run", fail)
    pack = Pack(np.asarray([2, 3], np.int32), np.zeros(2, np.uint8), np.asarray([2]))
    with pytest.raises(Ended if ends else type(error)):
        asyncio.run(encoder.compute(release, Operation("embed"), pack, 0))


SOME = Pack(np.asarray([2, 3], np.int32), np.zeros(2, np.uint8), np.asarray([2]))


def test_a_replica_ends_if_it_can_compute_nothing_more(outside_ray, folders, monkeypatch):
    encoder, release = replica_of(folders["embeddings"])

    def fail(operation, pack):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(encoder._models[release], "run", fail)
    with pytest.raises(Ended):
        asyncio.run(encoder.compute(release, Operation("embed"), SOME, 0))


def test_a_health_check_computes_what_a_broken_replica_cannot(outside_ray, folders, monkeypatch):
    encoder, release = replica_of(folders["embeddings"])
    computed: list[int] = []
    compute = encoder._models[release].run

    def count(operation, pack):
        computed.append(len(pack.ids))
        return compute(operation, pack)

    monkeypatch.setattr(encoder._models[release], "run", count)
    asyncio.run(encoder.check_health())
    assert len(computed) == 1
    asyncio.run(encoder.check_health())  # it has computed a moment ago
    assert len(computed) == 1

    def spoil(operation, pack):
        return [np.full_like(row, np.nan) for row in compute(operation, pack)]

    monkeypatch.setattr(encoder._models[release], "run", spoil)
    encoder._computed_at = 0.0
    with pytest.raises(Ended):
        asyncio.run(encoder.check_health())


def test_a_replica_whose_pack_hangs_ends_even_if_the_gateway_has_given_the_pack_up(
    outside_ray, folders, monkeypatch
):
    encoder, release = replica_of(folders["embeddings"])
    go = threading.Event()
    monkeypatch.setattr(encoder._models[release], "run", lambda operation, pack: go.wait(PATIENCE))

    async def run():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(encoder.compute(release, Operation("embed"), SOME, 0), 0.1)
        await encoder.check_health()  # it is not so late yet
        monkeypatch.setattr(encoder, "_max_seconds", lambda tokens: 0.0)
        with pytest.raises(Ended):
            await encoder.check_health()
        go.set()

    asyncio.run(run())


def test_the_autoscaler_hears_of_a_pack_until_it_is_computed(outside_ray, folders, monkeypatch):
    """However long that takes: a replica that computes is not taken for an idle one."""
    monkeypatch.setattr(replica, "_IDLE_S", 0.0)
    encoder, release = replica_of(folders["classify"])
    pack = Pack(np.full(8, 5, np.int32), np.zeros(8, np.uint8), np.asarray([8]))
    computed = encoder._threads.run
    heard = []

    async def computing(*arguments):
        heard.append(encoder.record_autoscaling_stats())
        return await computed(*arguments)

    monkeypatch.setattr(encoder._threads, "run", computing)
    asyncio.run(encoder.compute(release, Operation("classify"), pack, 20))
    assert heard == [{UNANSWERED: 20.0}]
    assert encoder.record_autoscaling_stats() == {UNANSWERED: 0.0}
    monkeypatch.setattr(replica, "_IDLE_S", PATIENCE)
    assert encoder.record_autoscaling_stats() == {UNANSWERED: 12.0}  # its own eight are answered
