"""Without any one of Ray's private names, all goes on the public way; and no other file knows one."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import parameter
from ray.tune.schedulers import ASHAScheduler

from headway.cluster import address, prestart, ray_internals, worker_group
from headway.cluster.worker_group import WorkerResources
from headway.config.sweep import SweepConfig
from headway.sweeps import schedulers
from headway.sweeps.ledger import Ledger
from waiting import PATIENCE

PACKAGE = Path(ray_internals.__file__).parents[1]

DOCUMENTED = {
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"),
    *("RAY_JOB_STOP_WAIT_TIME_S", "RAY_SERVE_LOG_TO_STDERR", "RAY_AIR_NEW_OUTPUT"),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",  # Ray's own warning names it
}
"""Variables that Ray's documentation offers to users; any other is private."""

PRIVATE = [
    r"\bray(?:\.\w+)*\._\w+",  # a module, or an attribute
    r"\bfrom ray\b[\w.]* import [^#\n]*\b_\w+",
    r"_raylet\b",
    r"\bray\.(?:core\.generated|dashboard|train\.v2|tune\.execution)\b",
    r"\b__RAY_\w+",
    r"\bRAY_\w+",
]


def private_imports() -> list[tuple[str, str, str]]:
    """(function, module, name) of all that the functions of `ray_internals` import from Ray."""
    functions = ast.parse(inspect.getsource(ray_internals)).body
    return [
        (function.name, node.module, alias.name)
        for function in functions
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    ]


def enter_node_settings() -> bool:
    """Whether the block runs, with nodes configured as ever."""
    original = parameter.RayParams
    with ray_internals.node_settings(no_monitor=True):
        return parameter.RayParams is original


FALLBACKS: dict[str, tuple[Callable[[], Any], Any]] = {
    "setup_script": (ray_internals.setup_script, None),
    "node_settings": (enter_node_settings, True),
    "is_refused": (lambda: ray_internals.is_refused("127.0.0.1:1", 0.1), False),
    "show_token": (ray_internals.show_token, False),
    "start_processes": (lambda: ray_internals.start_processes(1, "{}", "127.0.0.1:1"), None),
    "cluster_version": (ray_internals.cluster_version, 0),
    "is_growth_refused": (lambda: ray_internals.is_growth_refused(0), None),
    "_is_growth_refused_by_older_autoscaler": (
        ray_internals._is_growth_refused_by_older_autoscaler,
        None,
    ),
    "launch_problem": (ray_internals.launch_problem, None),
    "_cluster_status": (ray_internals._cluster_status, None),
    "train_environment": (ray_internals.train_environment, None),
    "trial_environment": (ray_internals.trial_environment, None),
    "setup_hook": (lambda: ray_internals.setup_hook("some.function"), {}),
    "keep": (lambda: ray_internals.keep("key", b"content"), None),
    "kept": (lambda: ray_internals.kept("key"), None),
    "is_leaving": (ray_internals.is_leaving, False),
}
"""How each function is called, and what it returns without what it imports."""


def hide(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    """Have `from module import name` fail, as if this Ray had no such thing."""
    monkeypatch.delattr(__import__(module, fromlist=[name]), name)
    if f"{module}.{name}" in sys.modules:
        monkeypatch.setitem(sys.modules, f"{module}.{name}", None)


@pytest.mark.parametrize(("function", "module", "name"), private_imports())
def test_each_does_without_each_name_that_it_imports(monkeypatch, function, module, name):
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)  # no worker calls
    call, expected = FALLBACKS[function]
    with monkeypatch.context() as without:
        hide(without, module, name)
        assert call() == expected


@pytest.mark.parametrize(("function", "module", "name"), private_imports())
def test_each_does_without_each_module_that_it_imports_from(monkeypatch, function, module, name):
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    importlib.import_module(module)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, module, None)
        call, expected = FALLBACKS[function]
        assert call() == expected


def test_a_trial_is_put_in_no_bracket_of_a_scheduler_that_keeps_them_elsewhere(monkeypatch, tmp_path):
    trial = SimpleNamespace(trial_id="a", config={"point": {"number": 3}})
    assert not ray_internals.put_in_bracket(SimpleNamespace(_trial_info={}), trial, 0)
    assert not ray_internals.put_in_bracket(SimpleNamespace(_brackets=[1]), trial, 0)
    monkeypatch.setattr(ray_internals, "put_in_bracket", lambda *_: False)
    config = SweepConfig.model_validate(
        {"model": "m", "task": {"source": "s"}, "search": {"batch_size": [8]}, "scheduler": "hyperband"}
    )
    scheduler = schedulers.make_scheduler(config, {}, Ledger(tmp_path), "loss", "min")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"round": 1, "loss": 1.0}) == ASHAScheduler.CONTINUE


def test_a_token_that_cannot_be_shown_is_asked_for_in_one_line(monkeypatch):
    monkeypatch.setattr(ray_internals, "is_refused", lambda *_: True)
    monkeypatch.setattr(ray_internals, "show_token", lambda: False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    problem = address._token_problem("127.0.0.1:1")
    assert problem is not None and problem.endswith("set RAY_AUTH_MODE=token")


def test_a_few_bytes_are_kept_as_long_as_the_cluster_lives(ray_cluster):
    assert ray_internals.kept("nothing") is None
    ray_internals.keep("some", b"first")
    ray_internals.keep("some", b"second")
    # In a process of its own, as after the end of the one that kept it.
    assert ray.get(ray.remote(lambda: ray_internals.kept("some")).remote()) == b"second"


def test_a_cluster_that_cannot_be_asked_is_left_to_ray(ray_cluster, monkeypatch):
    cluster = ray.get_runtime_context().gcs_address
    with monkeypatch.context() as without:
        hide(without, "ray._private.grpc_utils", "init_grpc_channel")
        assert address.address_problem(cluster) is None


def test_what_cannot_be_started_ahead_starts_when_it_is_asked_for(ray_cluster, monkeypatch, caplog):
    with monkeypatch.context() as without:
        hide(without, "ray.core.generated.node_manager_pb2", "PrestartWorkersRequest")
        hide(without, "ray.train.v2._internal.constants", "get_env_vars_to_propagate")
        prestart.start_processes(1)
        worker_group.start_workers_ahead(1, WorkerResources(cpus=1))
    assert not caplog.records
    assert ray.get(ray.remote(num_cpus=1)(lambda: 7).remote()) == 7


def test_a_worker_trains_without_its_hook_and_asks_ray_publicly_whether_it_leaves(
    ray_cluster, tmp_path, monkeypatch
):
    """On a real group of two workers, each of which calls what is a barrier of both."""

    def train(folder: str, worker: Any, launched_at: float) -> None:
        import sys

        import ray.train.v2._internal.execution.context as private

        del private.get_train_context
        asked = []
        publicly = ray.train.get_preemption_info

        def ask() -> Any:
            asked.append(1)
            return publicly()

        ray.train.get_preemption_info = ask
        leaving = [worker.is_leaving() for _ in range(3)]
        (Path(folder) / f"{worker.rank}").write_text(f"{leaving} {len(asked)} {'torch' in sys.modules}")

    hide(monkeypatch, "ray._private.ray_constants", "WORKER_PROCESS_SETUP_HOOK_ENV_VAR")
    assert prestart.worker_environment(1) == {"OMP_NUM_THREADS": "1"}
    worker_group.train_on_workers(train, (str(tmp_path),), 2, tmp_path / "ray", lambda: 0)
    expected = f"{[False] * 3} 3 True"
    assert [(tmp_path / rank).read_text() for rank in "01"] == [expected] * 2


def test_a_local_ray_starts_without_its_setup_script():
    """In a process of its own; what Ray starts then is Python itself, and no fork."""
    code = """
import sys
import ray._private.workers
sys.modules["ray._private.workers.setup_worker"] = None
from headway.cluster import connect
from headway.cluster.fork_server import server

def parent():
    import os, psutil
    return psutil.Process(os.getppid()).cmdline()

connect.connect(None, "sqlite://")
[command] = connect.map_on_cluster(parent, [()], 1)
print(server.__file__ in command)
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_importing_them_imports_no_ray():
    code = (
        "import sys, headway.cluster.ray_internals; print([n for n in ('ray', 'grpc') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def attributes_used() -> set[str]:
    """Underscore attributes of Ray's objects, by which a file could go round this one."""
    tree = ast.walk(ast.parse(inspect.getsource(ray_internals)))
    return {node.attr for node in tree if isinstance(node, ast.Attribute) and node.attr.startswith("_")}


def private_names_in(text: str) -> list[str]:
    patterns = [*PRIVATE, *(rf"\.{name}\b" for name in attributes_used() if not name.startswith("__"))]
    found = [match for pattern in patterns for match in re.findall(pattern, text)]
    return [match for match in found if match not in DOCUMENTED]


@pytest.mark.parametrize(
    "line",
    [
        "import ray._private.worker",
        "from ray.train.v2._internal.constants import NAME",
        "from ray.train.torch.config import TorchConfig, _TorchBackend",
        "ray.get_runtime_context()._worker; ray._config",
        "from ray.core.generated import common_pb2",
        'os.environ["RAY_worker_niceness"]',
        "self._trial_info[name]",
    ],
)
def test_a_private_name_is_recognized(line):
    assert private_names_in(line)


def test_no_other_file_knows_a_private_name():
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != Path(ray_internals.__file__) and (names := private_names_in(path.read_text()))
    }
    assert not found
