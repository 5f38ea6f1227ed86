"""The manifests for KubeRay fit this Headway: its Ray, its command line, its settings."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from ray._common.utils import import_attr
from ray.serve.schema import ServeDeploySchema

from headway.cli.main import main
from headway.config.loading import load_pipeline, validate
from headway.config.serve import ServeConfig

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "kuberay"


def manifest(name: str) -> dict[str, Any]:
    return next(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


CLUSTERS = {
    "rayjob.yaml": lambda: manifest("rayjob.yaml")["spec"]["rayClusterSpec"],
    "rayservice.yaml": lambda: manifest("rayservice.yaml")["spec"]["rayClusterConfig"],
}


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CLUSTERS[request.param]()


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_ray_and_images_are_of_a_version_that_headway_takes(cluster):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [ray] = [line for line in project["dependencies"] if line.startswith("ray[")]
    assert cluster["rayVersion"] in SpecifierSet(ray.partition("]")[2])
    images = {container["image"] for pod in pods(cluster) for container in pod["containers"]}
    assert len(images) == 1
    version, _, python = images.pop().rpartition(":")[2].partition("-py")
    assert version == cluster["rayVersion"]
    assert f"{python[0]}.{python[1:]}" in SpecifierSet(project["requires-python"])


def test_every_pod_sees_the_shared_folder(cluster):
    for pod in pods(cluster):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert "/mnt/headway" in mounts
            assert set(mounts.values()) <= volumes


def test_the_job_is_a_command_that_the_command_line_takes():
    program, verb, *arguments = shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])
    assert program == "headway"
    parsed = main.commands[verb].make_context(verb, arguments).params
    assert parsed["address"] == "auto"
    assert str(parsed["runs"]).startswith("/mnt/headway/")
    inside = Path(parsed["file"]).relative_to("/home/ray/headway")
    assert load_pipeline(ROOT / inside, ()).steps


def test_the_service_names_an_application_and_settings_that_there_are():
    spec = manifest("rayservice.yaml")["spec"]
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"])).applications
    assert callable(import_attr(application.import_path))
    arguments = dict(application.args)
    assert arguments.pop("runs").startswith("/mnt/headway/")
    config = validate(ServeConfig, arguments)
    [head] = pods(spec["rayClusterConfig"])[0]["containers"]
    assert config.port in [port["containerPort"] for port in head["ports"]]
    assert str(config.api_keys_file).startswith(tuple(mount["mountPath"] for mount in head["volumeMounts"]))


def test_the_service_leads_to_the_node_with_the_gateway():
    service, access = yaml.safe_load_all((FOLDER / "rayservice.yaml").read_text(encoding="utf-8"))
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert access["spec"]["selector"].items() <= head["template"]["metadata"]["labels"].items()
    assert yaml.safe_load(yaml.safe_load(head["rayStartParams"]["resources"])) == {"gateway": 1}
    [port] = head["template"]["spec"]["containers"][0]["ports"]
    assert access["spec"]["ports"][0]["targetPort"] == port["name"]
