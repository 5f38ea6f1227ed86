"""A Ray head whose autoscaler adds nodes that are processes of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from ports import free_port

_COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
    *("rsync_exclude", "rsync_filter"),
)
_HEAD, _WORKER = "ray.head.default", "worker"


@contextlib.contextmanager
def fake_autoscaler(
    folder: Path, *, head_cpus: int, node_cpus: int, most_nodes: int, idle_minutes: float = 0.05
) -> Iterator[str]:
    """Address of a cluster of a head alone, which may add nodes, and takes them away when they are idle.

    `ray.cluster_utils.AutoscalingCluster` would first end every Ray process of the machine, and its settings
    need a file that Ray's wheel lacks.
    """
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    config = {
        "cluster_name": "fake",
        "max_workers": most_nodes,
        "idle_timeout_minutes": idle_minutes,
        "provider": {
            # By its path: as `fake_multinode` it asks for a file that Ray's wheel lacks.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "available_node_types": {
            _HEAD: {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
            _WORKER: {
                "resources": {"CPU": node_cpus},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most_nodes,
            },
        },
        "head_node_type": _HEAD,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in _COMMANDS},
        "upscaling_speed": 1.0,
        "file_mounts_sync_continuously": False,
    }
    (folder / "autoscaling.json").write_text(json.dumps(config))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--num-cpus={head_cpus}", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"),
        *("--disable-usage-stats", "--dashboard-agent-listen-port=0"),
        f"--autoscaling-config={folder / 'autoscaling.json'}",
    ]
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    # Every node would claim the same resources, the head too.
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_OVERRIDE_RESOURCES"}
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=inherited | settings)
    try:
        yield address
    finally:
        for process in [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        head.wait()
