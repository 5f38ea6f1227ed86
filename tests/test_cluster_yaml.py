"""`cluster.yaml`, and each variant at its end, is one that Ray's own launcher takes, and can train with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

TEXT = (Path(__file__).parents[1] / "cluster.yaml").read_text()
REPLACED = (
    *("provider", "auth", "min_workers", "max_workers", "initialization_commands"),
    "head_start_ray_commands",
)
"""What the file says a variant is put in the place of."""


def variants() -> dict[str, dict[str, Any]]:
    """The file as it stands, and as it is with each of its variants."""
    first: dict[str, Any] = yaml.safe_load(TEXT)
    found = {"local": first}
    parts = re.split(r"^# --- .*-+$", TEXT, flags=re.MULTILINE)[1:]
    for part in parts:
        lines = [line.removeprefix("#").removeprefix(" ") for line in part.strip().splitlines()]
        start = next(n for n, line in enumerate(lines) if line.startswith("provider:"))
        given = yaml.safe_load("\n".join(lines[start:]))
        found[given["provider"]["type"]] = {k: v for k, v in first.items() if k not in REPLACED} | given
    return found


CLOUDS = ("aws", "gcp")


def node_types(prepared: dict[str, Any]) -> dict[str, Any]:
    types: dict[str, Any] = prepared["available_node_types"]
    return types


@pytest.fixture(params=variants())
def prepared(request: pytest.FixtureRequest) -> dict[str, Any]:
    """As Ray completes it before it starts anything."""
    config: dict[str, Any] = prepare_config(variants()[request.param])
    validate_config(config)
    return config


def test_there_are_variants_for_own_machines_and_two_clouds():
    assert tuple(variants()) == ("local", *CLOUDS)


def test_rays_launcher_would_notice_a_mistake():
    """So that the fixture above cannot pass by checking nothing."""
    import jsonschema

    broken = prepare_config(yaml.safe_load(TEXT)) | {"max_workerz": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_workerz"):
        validate_config(broken)


@pytest.mark.parametrize("name", CLOUDS)
def test_as_many_workers_may_start_as_their_types_allow(name):
    config = prepare_config(variants()[name])
    workers = [kind for kind in node_types(config) if kind != config["head_node_type"]]
    assert config["max_workers"] >= sum(node_types(config)[kind]["max_workers"] for kind in workers) > 0


def test_shared_storage_is_mounted_on_every_machine(prepared):
    commands = prepared["initialization_commands"]
    assert any("mount -t nfs" in command and "/mnt/headway" in command for command in commands)


def test_python_packages_go_into_the_environment_that_runs_ray(prepared):
    """What Ray would add by itself calls a `pip` that current images lack, or refuse."""
    for name in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        for command in prepared[name]:
            assert "pip install" not in command.replace(".venv/bin/pip install", ""), command


def test_the_autoscaler_is_the_one_that_the_provider_needs(prepared):
    older = any("RAY_enable_autoscaler_v2=0" in command for command in prepared["head_start_ray_commands"])
    assert older == (prepared["provider"]["type"] == "local")


@pytest.mark.parametrize("name", CLOUDS)
def test_a_clouds_head_does_not_train_and_its_workers_have_gpus(name):
    types = node_types(prepare_config(variants()[name]))
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu_worker"]["resources"]["GPU"] == 1
    assert types["gpu_worker"]["min_workers"] == 0


def test_aws_starts_no_image_that_ray_falls_back_to():
    for kind in node_types(prepare_config(variants()["aws"])).values():
        assert "24.04" in kind["node_config"]["ImageId"]
        assert kind["node_config"]["BlockDeviceMappings"]


def test_google_clouds_machines_have_a_disk_to_boot_from():
    for kind in node_types(prepare_config(variants()["gcp"])).values():
        [disk] = kind["node_config"]["disks"]
        assert disk["boot"] is True
        assert "2404" in disk["initializeParams"]["sourceImage"]
        assert disk["initializeParams"]["diskSizeGb"] >= 100
