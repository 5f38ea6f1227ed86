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
from headway.config.pipeline import PipelineConfig
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
    assert job_pipeline().steps


def job_pipeline() -> PipelineConfig:
    """What the job runs."""
    _, verb, *arguments = shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])
    parsed = main.commands[verb].make_context(verb, arguments).params
    inside = Path(parsed["file"]).relative_to("/home/ray/headway")
    return load_pipeline(ROOT / inside, parsed["overrides"])


def test_the_jobs_workers_find_a_gpu_each_and_its_texts_are_on_the_volume():
    steps = job_pipeline().steps
    [group] = manifest("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert steps["pretrain"]["workers"] == group["maxReplicas"] * gpus
    assert steps["corpus"]["source"].startswith("/mnt/headway/")


def test_pods_come_as_they_are_asked_for(cluster):
    """By the autoscaler that says what it can never add; it wants pods that are not restarted in place."""
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert {pod["restartPolicy"] for pod in pods(cluster)} == {"Never"}


def test_every_pod_knows_the_tracking_server(cluster):
    for pod in pods(cluster):
        for container in pod["containers"]:
            assert "MLFLOW_TRACKING_URI" in [variable["name"] for variable in container["env"]]


def test_replicas_reserve_the_cores_that_bring_pods():
    spec = manifest("rayservice.yaml")["spec"]
    [application] = yaml.safe_load(spec["serveConfigV2"])["applications"]
    [group] = spec["rayClusterConfig"]["workerGroupSpecs"]
    cores = int(group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    assert 0 < application["args"]["replica_cpus"] <= cores
    assert application["args"]["replicas"] == [group["minReplicas"], group["maxReplicas"]]


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


def test_kuberays_own_service_leads_to_the_gateway():
    """It follows the cluster that is active; a selector of one's own finds the heads of two in an upgrade."""
    [service] = yaml.safe_load_all((FOLDER / "rayservice.yaml").read_text(encoding="utf-8"))
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert yaml.safe_load(yaml.safe_load(head["rayStartParams"]["resources"])) == {"gateway": 1}
    [container] = head["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    # Naming any leaves out those of Ray that KubeRay and the workers use.
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000, "headway": 8080}
