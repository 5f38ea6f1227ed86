"""A forked process is what Python itself would have been, but for the time that it takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private.workers import setup_worker

from headway.cluster.fork_server import client, launch, server
from waiting import PATIENCE, wait_until

STATE = """
import json, os, random, signal, sys
import numpy
print(json.dumps({
    "name": __name__, "argv": sys.argv, "path": sys.path, "folder": os.getcwd(),
    "environment": dict(os.environ), "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "on_child": str(signal.getsignal(signal.SIGCHLD)), "files": sorted(os.listdir("/proc/self/fd")),
    "drawn": [random.random(), numpy.random.random()], "loaded": "torch" in sys.modules,
    "process": os.getpid(), "group": os.getpgid(0), "input": sys.stdin.read(),
}))
"""


@dataclass
class Forked:
    """A fork server with torch loaded, and scripts to run through it."""

    folder: Path
    process: subprocess.Popen[bytes]

    def start_client(self, code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        script = self.folder / "script.py"
        script.write_text(code)
        command = [sys.executable, client.__file__, str(script), *arguments]
        environment = options.pop("env", os.environ) | self.address()
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment, **options
        )

    def address(self) -> dict[str, str]:
        return {client.FORK_SERVER: str(self.folder / "own" / "fork_server")}

    def run(self, code: str, *arguments: str, **options: Any) -> tuple[int, str, str]:
        process = self.start_client(code, *arguments, **options)
        out, err = process.communicate("given", timeout=PATIENCE)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def forked(tmp_path_factory) -> Iterator[Forked]:
    folder = tmp_path_factory.mktemp("forked")
    (folder / "own").mkdir()
    process = launch.start_server(folder / "own" / "fork_server", ["torch"])
    yield Forked(folder, process)
    process.kill()
    process.wait()


def state(forked: Forked, *arguments: str, **options: Any) -> dict[str, Any]:
    code, out, err = forked.run(STATE, *arguments, **options)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_it_is_what_python_itself_would_be(forked, tmp_path):
    options: dict[str, Any] = {
        "cwd": tmp_path,
        "env": os.environ | forked.address() | {"ANSWER": "42", "ODD": "a\udcffb\nc"},
        "preexec_fn": lambda: (os.nice(3), signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])),
    }
    found = state(forked, "--number", "7", **options)
    command = [sys.executable, str(forked.folder / "script.py"), "--number", "7"]
    plain = subprocess.run(command, input="given", capture_output=True, text=True, check=True, **options)
    expected = json.loads(plain.stdout)
    assert found["loaded"] and not expected["loaded"]
    assert found["group"] == found["process"], "Ray ends a worker with its group"
    for own in ("loaded", "drawn", "process", "group"):
        del found[own], expected[own]
    assert found == expected


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"env_vars": {"NEW": "1", "BOTH": "$BASE and ${BASE}", "NONE": "<${NO_SUCH}>", "BASE": "later"}},
        {"env_vars": {"A": "1"}, "py_executable": f"{sys.executable} -B", "command_prefix": ["true", "&&"]},
    ],
)
def test_it_sets_up_what_rays_own_script_does(forked, context):
    arguments = [f"--serialized-runtime-env-context={json.dumps(context)}", "--number=7", "--language=PYTHON"]
    environment = os.environ | {"BASE": "first"}
    found = state(forked, *arguments, env=environment)
    assert found["loaded"] == ("py_executable" not in context), "what is no plain Python is not forked"
    own = [sys.executable, setup_worker.__file__, str(forked.folder / "script.py"), *arguments]
    done = subprocess.run(
        own, input="given", capture_output=True, text=True, check=True, env=environment | forked.address()
    )
    expected = json.loads(done.stdout)
    of_the_shell = ("_", "SHLVL", "PWD", "OLDPWD")
    for side in (found, expected):
        side["environment"] = {k: v for k, v in side["environment"].items() if k not in of_the_shell}
    same = ("argv", "environment", "folder", "input")
    assert [found[name] for name in same] == [expected[name] for name in same]


def test_no_two_draw_the_same_numbers(forked):
    first, second = state(forked)["drawn"], state(forked)["drawn"]
    assert first[0] != second[0] and first[1] != second[1]


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise ValueError('no such thing')", 1, "ValueError: no such thing"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + 9, ""),
        ("import atexit, sys; atexit.register(lambda: print('bye', file=sys.stderr))", 0, "bye"),
    ],
)
def test_its_end_is_told(forked, code, status, told):
    found, _, err = forked.run(code)
    assert found == status
    assert err.strip().splitlines()[-1:] == ([told] if told else [])


def test_its_threads_are_those_that_were_asked_for(forked):
    code = """
import torch
class Seen(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * 2
    @staticmethod
    def backward(context, gradient):
        print(torch.get_num_threads())
        return gradient
print(torch.get_num_threads())
Seen.apply(torch.ones(3, requires_grad=True)).sum().backward()
"""
    for threads in ("1", "2", "3"):
        status, out, err = forked.run(code, env=os.environ | {"OMP_NUM_THREADS": threads})
        assert (status, err, out.split()) == (0, "", [threads, threads])


def test_another_environment_of_its_libraries_gets_a_python_of_its_own(forked):
    assert not state(forked, env=os.environ | {"HF_HOME": "/elsewhere"})["loaded"]
    assert state(forked, env=os.environ | {"ELSE": "1"})["loaded"]


def test_what_a_library_sets_as_it_is_loaded_makes_no_difference():
    def order(**environment: str) -> server.Order:
        return server.Order([], environment, "/", 0, [], "0", [])

    before, after = {"HF_HOME": "/a"}, {"HF_HOME": "/a", "TORCHINDUCTOR_CACHE_DIR": "/t"}
    assert order(HF_HOME="/a").fits(before, after)
    assert order(**after).fits(before, after)
    assert not order(HF_HOME="/a", TORCHINDUCTOR_CACHE_DIR="/u").fits(before, after)
    assert not order().fits(before, after)


def test_without_a_fork_server_it_becomes_python_itself(forked, tmp_path):
    alone = Forked(tmp_path, forked.process)
    process = alone.start_client(STATE)
    out, _ = process.communicate("", timeout=PATIENCE)
    assert json.loads(out)["process"] == process.pid


def test_signals_are_passed_on(forked):
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True)\n"
    )
    process = forked.start_client(code + "while True: signal.pause()")
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.terminate()
    assert process.wait(PATIENCE) == 7


def test_where_one_is_killed_the_other_ends(forked):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    for killed in ("client", "process"):
        own = forked.start_client(code)
        assert own.stdout is not None
        process = psutil.Process(int(own.stdout.readline()))
        os.kill(own.pid if killed == "client" else process.pid, signal.SIGKILL)
        assert own.wait(PATIENCE) == (-9 if killed == "client" else 137)
        wait_until(lambda process=process: not process.is_running())


def test_nothing_outlives_the_driver(tmp_path):
    code = f"""
import os, subprocess, sys, time
from headway.cluster.fork_server import client, launch
launch.start([])
environment = os.environ | launch.worker_environment()
subprocess.Popen([sys.executable, client.__file__, {str(tmp_path / "long.py")!r}], env=environment)
time.sleep(1000)
"""
    (tmp_path / "long.py").write_text(
        "import os, time; print(os.getppid(), os.getpid(), flush=True); time.sleep(1000)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    processes = [psutil.Process(int(number)) for number in driver.stdout.readline().split()]
    [folder] = {Path(str(c.laddr)).parent for c in processes[0].net_connections("unix") if c.laddr}
    assert folder.stat().st_mode & 0o077 == 0, "nobody else may ask for a process"
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(process.is_running() for process in processes))
    wait_until(lambda: not folder.exists())


def test_what_the_fork_server_loads_brings_no_ray():
    heavy = ["ray", "grpc", "mlflow"]
    code = f"import sys, {', '.join(launch.FOR_ALL)}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ray_forks_its_processes_and_one_that_dies_is_replaced(ray_cluster, tmp_path):
    @ray.remote(num_cpus=1, max_retries=1)
    def work() -> tuple[str, bool]:
        mark = tmp_path / "died"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return " ".join(psutil.Process(os.getppid()).cmdline()), "torch" in sys.modules

    command, loaded = ray.get(work.remote())
    assert server.__file__ in command and loaded
