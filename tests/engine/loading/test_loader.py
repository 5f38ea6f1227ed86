"""The loader gives the same batches however many processes make them, and leaves none behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import forkserver, resource_tracker
from typing import Any

import psutil
import pytest
import ray
import torch
from failing_batches import collects_garbage_first, dies_at_step_4, fails_at_step_4

from headway.config.pretrain import MaskingConfig
from headway.data.batch import Batch
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.sampling import BatchSizes
from headway.engine.loading import batch_processes
from headway.engine.loading.batch_processes import LoaderProcessError
from headway.engine.loading.loader import Loader, loader_processes
from waiting import PATIENCE

CPU = torch.device("cpu")


@pytest.fixture
def make(corpus: Any) -> Callable[[int], list[Batch]]:
    """Two micro-batches a step."""
    source = PretrainingBatches(
        corpus.store("train"),
        corpus.tokenizer,
        max_length=32,
        masking=MaskingConfig(),
        pairs="nsp",
        batch_sizes=BatchSizes(12),
        seed=0,
    )
    return partial(source.micro_batches, rank=0, world_size=1, parts=2)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """But for Python's own two, which start the others and end with the program."""
    batch_processes.start_fork_server()
    resource_tracker.ensure_running()
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not psutil.wait_procs(list(left), timeout=10)[1]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    for left, right in zip(one, other, strict=True):
        for name, value in vars(left).items():
            actual = getattr(right, name)
            assert torch.equal(value, actual) if isinstance(value, torch.Tensor) else value == actual
            assert not isinstance(value, torch.Tensor) or value.dtype == actual.dtype


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize("processes", [0, 1, 2])
def test_batches_are_those_of_their_steps_in_order(processes, first, make):
    with Loader(make, first, first + 9, device=CPU, processes=processes) as loader:
        steps = list(loader)
    assert [step for step, _, _ in steps] == list(range(first, first + 9))
    for step, host, device in steps:
        assert_same(make(step), host)
        assert all(one is other for one, other in zip(host, device, strict=True))


@pytest.mark.parametrize("size", [16, 3000])
def test_batches_that_their_memory_cannot_hold_come_another_way(size, make, monkeypatch):
    """None of the two fits, or one of them."""
    monkeypatch.setattr(batch_processes, "_CELL_BYTES", size)
    with Loader(make, 0, 9, device=CPU, processes=2) as loader:
        for step, host, _ in loader:
            assert_same(make(step), host)


def test_batches_stay_as_they_are_while_later_ones_are_made(make):
    with Loader(make, 0, 40, device=CPU, processes=2) as loader:
        kept = {step: host for step, host, _ in loader}
    for step, host in kept.items():
        assert_same(make(step), host)


@pytest.mark.parametrize("processes", [0, 2])
def test_on_another_device_the_batches_are_there_and_on_the_host(processes, make):
    with Loader(make, 0, 3, device=torch.device("meta"), processes=processes) as loader:
        for step, host, device in loader:
            assert_same(make(step), host)
            assert [batch.input_ids.device.type for batch in device] == ["meta", "meta"]
            assert [batch.input_ids.shape for batch in device] == [batch.input_ids.shape for batch in host]


@pytest.mark.parametrize("processes", [0, 2])
def test_no_steps_are_an_empty_loop(processes, make):
    with Loader(make, 5, 5, device=CPU, processes=processes) as loader:
        assert list(loader) == []


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, FileNotFoundError])
@pytest.mark.parametrize("processes", [0, 2])
def test_an_error_in_a_batch_surfaces_with_its_message_at_its_step(processes, kind, make):
    fails = partial(fails_at_step_4, make=make, kind=kind)
    seen = []
    with (
        pytest.raises(kind, match="row 17 is broken") as raised,
        Loader(fails, 0, 9, device=CPU, processes=processes) as loader,
    ):
        for step, _, _ in loader:
            seen.append(step)
    assert seen == [0, 1, 2, 3]
    assert not isinstance(raised.value, LoaderProcessError)


def test_a_killed_process_is_an_error_and_no_hang(make):
    dies = partial(dies_at_step_4, make=make, parent=os.getpid())
    started = time.monotonic()
    with (
        pytest.raises(LoaderProcessError, match=r"ended unexpectedly .*; it may have run out of memory"),
        Loader(dies, 0, 9, device=CPU, processes=2) as loader,
    ):
        for _ in loader:
            pass
    assert time.monotonic() - started < 30


def server_pid() -> int:
    """The process from which those that make batches are forked."""
    server: Any = forkserver._forkserver
    return int(server._forkserver_pid)


@pytest.mark.parametrize("processes", [0, 2])
def test_a_loop_that_is_left_early_ends_the_processes(processes, make):
    with (
        pytest.raises(KeyError, match="consumer"),
        Loader(make, 0, 1000, device=CPU, processes=processes) as loader,
    ):
        for step, _, _ in loader:
            if step == 2:
                [server] = [child for child in psutil.Process().children() if child.pid == server_pid()]
                assert len(server.children()) == processes
                raise KeyError("consumer")


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_when_their_parent_is_killed(signal_number, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import time, psutil, torch
            from headway.data.batch import Batch
            from headway.engine.loading.loader import Loader

            def make(step):
                row = torch.arange(4)
                return [Batch.of(input_ids=row, token_type_ids=row, lengths=torch.tensor([4]), labels=row[:1],
                                 masked_positions=row[:1], masked_labels=row[:1], row_ids=row[:1])]

            if __name__ == "__main__":
                for step, _, _ in Loader(make, 0, 10**9, device=torch.device("cpu"), processes=2):
                    if step == 3:
                        print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
                        time.sleep(600)
            """
        )
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 4  # Python starts two to start these two
        parent.send_signal(signal_number)
    deadline = time.monotonic() + PATIENCE
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, pids))


def test_rays_connections_outlive_the_processes_garbage(make, ray_cluster):
    """Forked from this process, they would end its actor on the connection that it goes on to use."""

    class EchoActor:
        def say(self, word: str) -> str:
            return word

    Echo: Any = ray.remote(num_cpus=0)(EchoActor)  # noqa: N806

    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.actor = Echo.remote()

    gc.disable()
    try:
        assert ray.get(Cycle().actor.say.remote("here")) == "here"
        with Loader(partial(collects_garbage_first, make=make), 0, 4, device=CPU, processes=1) as loader:
            list(loader)
    finally:
        gc.enable()
    gc.collect()
    for _ in range(3):
        assert ray.get(Echo.remote().say.remote("still here"), timeout=60) == "still here"


@pytest.mark.parametrize("processes", [0, 1])
def test_the_global_generator_is_left_alone(processes, make):
    before = torch.get_rng_state()
    with Loader(make, 0, 3, device=CPU, processes=processes) as loader:
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_are_as_many_as_set_or_as_suits_the_device(monkeypatch):
    gpu = torch.device("cuda")
    for cores, expected in ((1, 0), (2, 1), (5, 4), (64, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert loader_processes(None, gpu) == expected
        assert loader_processes(None, CPU) == 0
        assert loader_processes(7, CPU) == loader_processes(7, gpu) == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("processes", [0, 2])
def test_on_a_gpu_batches_are_right_while_it_is_busy_and_no_copy_waits(processes, make):
    device = torch.device("cuda")
    busy = torch.randn(4096, 4096, device=device)
    sums = []
    torch.cuda.synchronize()
    with Loader(make, 0, 40, device=device, processes=processes) as loader:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _, _, (first, second) in loader:
                busy = busy @ busy * 1e-3
                sums.append((first.input_ids * first.position_ids).sum() + second.input_ids.sum())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    expected = []
    for step in range(40):
        first, second = make(step)
        expected.append(int((first.input_ids * first.position_ids).sum() + second.input_ids.sum()))
    assert torch.stack(sums).tolist() == expected
