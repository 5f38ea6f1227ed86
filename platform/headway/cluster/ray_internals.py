"""All that Headway uses of Ray beyond its public interface, with what happens if a release lacks it.

Any release of Ray may remove a private name; these are the names of the release that pyproject.toml pins.
Each is looked up when its function is called. If it is missing, the function or its caller uses the public
interface, which is slower or less tidy, but correct. A variable that Ray no longer reads does no harm: Ray
keeps its default.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

_MISSING = (ImportError, AttributeError)
_KEPT_SECONDS = 300
_NAMESPACE = "headway"
_REQUEST_SECONDS = 10


def setup_script() -> str | None:
    """The script with which Ray sets up a worker process, for what the fork client leaves to it.

    Ray runs the script itself and has no public name for it. If it is missing, this is None, and Ray starts
    all processes its own way: none is forked, and each loads torch itself.
    """
    try:
        from ray._private.workers import setup_worker

        return str(setup_worker.__file__)
    except _MISSING:
        return None


@contextlib.contextmanager
def node_settings(**settings: Any) -> Iterator[None]:
    """Within the block, `ray.init` starts a node with these settings as well.

    They say which script sets up a process and which monitors run, for which `ray.init` has no arguments.
    Settings that a release does not know are left out. If it configures nodes in another way, all are, and
    the node is Ray's default one, with more processes.
    """
    try:
        from ray._private import parameter

        original = parameter.RayParams
    except _MISSING:
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
    """Settings of Ray's core for a cluster of one machine, which it reads only from its environment.

    If Ray no longer reads one, the cluster starts a second later, starts unused processes, or warns.
    """
    return {
        # Processes that Ray itself starts ahead are not forked, and so of no use to this job.
        "RAY_prestart_worker_first_driver": "0",
        # Ray's node connects to its object store before that listens, and retries only after a second.
        "RAY_raylet_client_connect_timeout_milliseconds": "50",
        "RAY_raylet_client_num_connect_attempts": "200",
        # Ray warns on the driver's output if there are four times as many processes as may start at once. A
        # trial has six, most of which wait.
        "RAY_worker_maximum_startup_concurrency": "16",
    }


def run_at_normal_priority() -> None:
    """Run worker processes at normal priority; Ray starts them at nice 15 and has no argument for it.

    If Ray no longer reads the variable, other programs on the machine may delay answers.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")


def is_refused(address: str, seconds: float) -> bool:
    """Whether the cluster at `host:port` requires another token than this process sends.

    `ray.init` finds out too, but after 20 s of warnings. If the interface is missing, this is False, and
    `ray.init` reports it.
    """
    try:
        import grpc
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
        from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    except _MISSING:
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
    """Have Ray send this machine's token, if it has one and `RAY_AUTH_MODE` is not set.

    Ray does so by itself only for the address `auto`, and reads `RAY_AUTH_MODE` once, when it is imported:
    setting it here would be too late. If the function is missing, this is False, and the user is told to
    set the variable.
    """
    try:
        from ray._private.authentication import authentication_token_setup as setup

        # It would log advice on how to disable tokens.
        setup.logger.setLevel(logging.ERROR)
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    except _MISSING:
        return False
    return True


def start_processes(processes: int, serialized_environment: str, address: str) -> None:
    """Have the node whose manager is at this address start processes for actors with this environment.

    Ray has no public call for it. If the private one is missing, nothing is started ahead, and Ray starts
    each process when its actor needs it.

    Raises:
        grpc.RpcError: the node does not answer.
    """
    with contextlib.suppress(*_MISSING):
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


def cluster_version() -> int:
    """The version of the cluster's state by which its autoscaler will say what it has seen; 0 if unknown."""
    status = _cluster_status()
    return 0 if status is None else int(status.cluster_resource_state.cluster_resource_state_version)


def is_growth_refused(since: int) -> bool | None:
    """Whether the nodes will not come that `ray.autoscaler.sdk.request_resources` asked for after a version.

    Ray has no public call that says what its autoscaler could add. If there is nothing to ask any more, this
    is None, and the caller waits for the nodes until it gives up.

    Args:
        since: what `cluster_version` gave just after the request.

    Returns:
        True if the cluster cannot have so many or has no autoscaler, False if they are on their way, None if
        the autoscaler has not said. The older one never does if it cannot start what was asked for.
    """
    status = _cluster_status()
    if status is None:
        return None
    state = status.autoscaling_state
    if state.last_seen_cluster_resource_state_version:
        if state.last_seen_cluster_resource_state_version <= since:
            return None
        return bool(state.infeasible_cluster_resource_constraints)
    return _is_growth_refused_by_older_autoscaler()


def _is_growth_refused_by_older_autoscaler() -> bool | None:
    try:
        from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
        from ray._private.worker import global_worker

        written = global_worker.gcs_client.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)
    except _MISSING:
        return None
    report = json.loads(written or "{}").get("autoscaler_report")
    if not report:
        return None
    # Without an autoscaler, each node is of a type of its own that is named after it.
    types = (report.get("node_type_mapping") or {}).items()
    if types and all(name == f"node_{node}" for node, name in types):
        return True
    return False if report.get("pending_launches") or report.get("pending_nodes") else None


def launch_problem() -> str | None:
    """Why the autoscaler could not start a node, the last time that it could not; None if it always could.

    If it cannot be asked, this is None, and a user has to read the autoscaler's log.
    """
    status = _cluster_status()
    failed = [] if status is None else list(status.autoscaling_state.failed_instance_requests)
    reason = max(failed, key=lambda request: request.failed_ts).reason.strip() if failed else ""
    return reason.splitlines()[0] if reason else None


def _cluster_status() -> Any:
    """What the cluster's head knows of its nodes and its autoscaler; None if it cannot be asked."""
    try:
        from ray._private.worker import global_worker
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
        from ray.exceptions import RpcError
    except _MISSING:
        return None
    try:
        return GetClusterStatusReply.FromString(global_worker.gcs_client.get_cluster_status())
    except (AttributeError, RpcError):
        return None


def train_environment() -> dict[str, str] | None:
    """The variables that Ray Train gives its controller, and all that the controller starts.

    A process that was started ahead is used only if its variables are the same, and Ray Train has no public
    name for them. If this is None, no process can be started ahead.
    """
    try:
        from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
        from ray.train.v2._internal.constants import get_env_vars_to_propagate

        return {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0"} | get_env_vars_to_propagate()
    except _MISSING:
        return None


def trial_environment() -> dict[str, str] | None:
    """The variables that Ray Tune gives its trials, as `train_environment` has them for Ray Train."""
    try:
        from ray.tune.execution.class_cache import DEFAULT_ENV_VARS, ENV_VARS_TO_PROPAGATE
    except _MISSING:
        return None
    passed_on = {name: os.environ[name] for name in ENV_VARS_TO_PROPAGATE if name in os.environ}
    return DEFAULT_ENV_VARS | passed_on


def setup_hook(function: str) -> dict[str, str]:
    """The variable that makes a worker process call a function, given by its full name, when it starts.

    Publicly only `ray.init` takes a hook, for every process of a job; training workers need their own. If the
    variable is missing, this is empty, and a worker loads what it needs when it begins to train.
    """
    try:
        from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
    except _MISSING:
        return {}
    return {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: function}


def is_leaving() -> bool:
    """Whether a node of this worker's training group is being drained, by a spot notice or an operator.

    Must be called on all workers, equally often: Ray's public call is a barrier, while this only reads a
    value. If there is no such value, the public call is made, and each step waits for all workers.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    except _MISSING:
        import ray.train

        return ray.train.get_preemption_info() is not None


def leave_out_preemption_watcher() -> None:
    """Have Ray Train start one process less, on a machine that gives no notice before it ends.

    If Ray no longer reads the variable, the process runs and finds nothing.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def set_train_defaults() -> None:
    """Make Ray Train keep no records and metrics of its own, and notice sooner that its workers are done.

    `RunConfig` has no fields for these. If Ray no longer reads one, a run ends a second later or writes more.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # 2 s by default


def put_in_bracket(scheduler: Any, trial: Any, bracket: int) -> bool:
    """Put a trial into a numbered bracket of Ray Tune's `ASHAScheduler`; returns whether that was possible.

    Ray draws brackets at random, differently after a restart. If its attributes are missing, this is False,
    and the caller lets Ray draw.
    """
    try:
        scheduler._trial_info[trial.trial_id] = scheduler._brackets[bracket]
    except _MISSING:
        return False
    return True


def keep(key: str, content: bytes) -> None:
    """Keep a few bytes as long as the cluster lives, in the store of Ray's head, as Ray Serve does.

    Ray's public way is a named actor, a process for a few bytes. If the store is missing, nothing is kept.
    """
    try:
        from ray.experimental.internal_kv import _internal_kv_put
    except _MISSING:
        return
    _internal_kv_put(key, content, overwrite=True, namespace=_NAMESPACE)


def kept(key: str) -> bytes | None:
    """What `keep` has kept; None if there is nothing."""
    try:
        from ray.experimental.internal_kv import _internal_kv_get
    except _MISSING:
        return None
    found: bytes | None = _internal_kv_get(key, namespace=_NAMESPACE)
    return found
