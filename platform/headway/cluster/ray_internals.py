"""All that Headway uses of Ray beyond its public interface, each with what is done if a release lacks it.

A private name may go with any release of Ray; these are the names of the release that pyproject.toml pins.
Each is looked up when its function is called. If it is gone, the function or its caller goes the public way:
slower, or less pretty, but right. A variable that Ray no longer reads does no harm: Ray keeps its default.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

_GONE = (ImportError, AttributeError)
_KEPT_SECONDS = 300
_REQUEST_SECONDS = 10


def setup_script() -> str | None:
    """The script by which Ray sets up a worker process, for what the fork server leaves to it.

    Ray starts the script itself and has no public name for it. If it is gone, this is None, and Ray starts
    all processes its own way: none is forked, and each loads torch for itself.
    """
    try:
        from ray._private.workers import setup_worker

        return str(setup_worker.__file__)
    except _GONE:
        return None


@contextlib.contextmanager
def node_settings(**settings: Any) -> Iterator[None]:
    """Within the block, `ray.init` starts a node with these settings too.

    `ray.init` has no arguments for them: which script sets a process up, which monitors run. Settings that a
    release does not know are left out. If it configures nodes in another way, all of them are, and the node
    is Ray's default one, with more processes.
    """
    try:
        from ray._private import parameter

        original = parameter.RayParams
    except _GONE:
        yield
        return
    known = inspect.signature(original).parameters
    parameter.RayParams = partial(
        original, **{name: value for name, value in settings.items() if name in known}
    )
    try:
        yield
    finally:
        parameter.RayParams = original


def local_node_variables() -> dict[str, str]:
    """Settings of Ray's core for a cluster of one machine, which it reads from its environment only.

    If Ray no longer reads one, the cluster starts a second later, starts processes nobody takes, or warns.
    """
    return {
        # Those that Ray starts ahead by itself are not forked from the parent, and so of no use to this job.
        "RAY_prestart_worker_first_driver": "0",
        # Ray's node asks its own object store for a connection before that listens, and again after a second.
        "RAY_raylet_client_connect_timeout_milliseconds": "50",
        "RAY_raylet_client_num_connect_attempts": "200",
        # Ray warns, on the driver's output, of four times as many processes as may start at once. A trial has
        # six, of which most wait.
        "RAY_worker_maximum_startup_concurrency": "16",
    }


def run_at_normal_priority() -> None:
    """Let worker processes compete as equals; Ray starts them at nice 15 and has no argument for it.

    If Ray no longer reads the variable, other programs on the machine may delay answers.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")


def is_refused(address: str, seconds: float) -> bool:
    """Whether the cluster at `host:port` asks for another token than this process shows.

    `ray.init` finds out too, but after 20 s of warnings. If the interface is gone, this is False, and
    `ray.init` is left to say so.
    """
    try:
        import grpc
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
        from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    except _GONE:
        return False
    channel = init_grpc_channel(address, asynchronous=False)
    try:
        NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=seconds)
    except grpc.RpcError as error:
        return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    except AttributeError:
        return False
    finally:
        channel.close()
    return False


def show_token() -> bool:
    """Have Ray use this machine's token, if it has one and `RAY_AUTH_MODE` is not set.

    Ray does so by itself for the address `auto` only, and reads `RAY_AUTH_MODE` once, as it is imported:
    setting it here would come too late. If the function is gone, this is False, and the user is told to.
    """
    try:
        from ray._private.authentication import authentication_token_setup as setup

        # It would advise on how to switch the token off.
        setup.logger.setLevel(logging.ERROR)
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    except _GONE:
        return False
    return True


def start_processes(processes: int, serialized_environment: str, address: str) -> None:
    """Have the node whose manager has this address start processes that wait for actors of this environment.

    Ray has no public call for it. If the private one is gone, nothing is started ahead, and Ray starts each
    process when its actor asks for it.

    Raises:
        grpc.RpcError: the node does not answer.
    """
    with contextlib.suppress(*_GONE):
        from ray._private.grpc_utils import init_grpc_channel
        from ray._private.worker import global_worker
        from ray.core.generated.common_pb2 import PYTHON
        from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
        from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

        request = PrestartWorkersRequest(
            language=PYTHON,
            num_workers=processes,
            keep_alive_duration_secs=_KEPT_SECONDS,
            job_id=global_worker.current_job_id.binary(),
        )
        request.runtime_env_info.serialized_runtime_env = serialized_environment
        channel = init_grpc_channel(address, asynchronous=False)
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_REQUEST_SECONDS)


def train_environment() -> dict[str, str] | None:
    """The variables that Ray Train gives its controller, and all that it starts.

    A process that is started ahead is taken only if its variables are the same, and Ray Train does not say
    publicly which they are. If this is None, none can be started ahead.
    """
    try:
        from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
        from ray.train.v2._internal.constants import get_env_vars_to_propagate

        return {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0"} | get_env_vars_to_propagate()
    except _GONE:
        return None


def trial_environment() -> dict[str, str] | None:
    """The variables that Ray Tune gives its trials, as `train_environment` has them for Ray Train."""
    try:
        from ray.tune.execution.class_cache import DEFAULT_ENV_VARS, ENV_VARS_TO_PROPAGATE
    except _GONE:
        return None
    passed_on = {name: os.environ[name] for name in ENV_VARS_TO_PROPAGATE if name in os.environ}
    return DEFAULT_ENV_VARS | passed_on


def setup_hook(function: str) -> dict[str, str]:
    """The variable that has a worker process call a function, by its full name, as it starts.

    Publicly only `ray.init` takes a hook, for every process of a job; training workers need one of their own.
    If the variable is gone, this is empty, and a worker loads what it needs once it is asked to train.
    """
    try:
        from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
    except _GONE:
        return {}
    return {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: function}


def is_leaving() -> bool:
    """Whether a node of this worker's training group is being drained: a spot notice, or an operator's wish.

    Called on all workers, equally often: Ray's public call is a barrier of them, while this only looks. If
    there is nothing to look at, that call is made, and each step waits for all workers.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    except _GONE:
        import ray.train

        return ray.train.get_preemption_info() is not None


def leave_out_preemption_watcher() -> None:
    """Have Ray Train start one process fewer, on a machine of which nobody gives notice before it ends.

    If Ray no longer reads the variable, the process runs, and sees nothing.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def set_train_defaults() -> None:
    """Ray Train without its own records and metrics, and quicker to notice that its workers are done.

    `RunConfig` has no fields for them. If Ray no longer reads one, a run ends a second later, or writes more.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # 2 s by default


def put_in_bracket(scheduler: Any, trial: Any, bracket: int) -> bool:
    """Put a trial into a bracket of Ray Tune's `ASHAScheduler`, by number; whether that could be done.

    Ray draws brackets by chance, differently after a restart. If its attributes are gone, this is False, and
    the caller lets Ray draw.
    """
    try:
        scheduler._trial_info[trial.trial_id] = scheduler._brackets[bracket]
    except _GONE:
        return False
    return True
