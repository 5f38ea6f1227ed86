"""A deployment on Ray Serve: nothing is lost when replicas die, versions change or the server stops."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from ray import serve
from transformers import AutoTokenizer, BertForSequenceClassification

from headway.config.serve import ServeConfig
from headway.inference.golden import FILE, store_golden
from headway.serving.declared import build
from headway.serving.deploy import application_name, deploy, follow_aliases, undeploy
from headway.serving.load_test import apply_load, bodies
from headway.serving.scheduling import replica
from headway.serving.scheduling.messages import Release
from headway.tracking import Tracking, tracking_uri
from ports import free_port
from waiting import PATIENCE, wait_until

TEXTS = [
    f"{subject} {verb} the {thing} {when}."
    for subject in ("The sailor", "A baker", "The florist", "Captain Ahab")
    for verb in ("steers", "slices", "waters", "hunts")
    for thing in ("boat", "bread", "rose", "whale")
    for when in ("before noon", "every morning")
]


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    """With a registry of the test's own: versions count from 1."""
    return Tracking.at(tmp_path / "runs")


@pytest.fixture(scope="module")
def classifiers(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two classifiers that answer differently, and one whose stored answers are another's."""
    root = tmp_path_factory.mktemp("versions")
    paths = []
    for number in range(3):
        torch.manual_seed(100 + number)
        path = root / str(number)
        shutil.copytree(folders["classify"], path)
        config = BertForSequenceClassification.from_pretrained(path).config
        BertForSequenceClassification(config).save_pretrained(path)
        store_golden(path, TEXTS[:4])
        paths.append(path)
    shutil.copy(paths[0] / FILE, paths[2] / FILE)
    return paths


@pytest.fixture(scope="module")
def expected(classifiers: list[Path]) -> dict[str, dict[str, list[float]]]:
    """transformers' probabilities by version and text."""
    answers = {}
    for version, path in enumerate(classifiers, 1):
        model = BertForSequenceClassification.from_pretrained(path).eval()
        batch = AutoTokenizer.from_pretrained(path)(TEXTS, padding=True, return_tensors="pt")
        with torch.inference_mode():
            probabilities = model(**batch).logits.softmax(-1).tolist()
        answers[str(version)] = dict(zip(TEXTS, probabilities, strict=True))
    return answers


@pytest.fixture(scope="module")
def ray_with_serve(runs: Path) -> Iterator[None]:
    import ray

    from headway.cluster import connect

    ours = not ray.is_initialized()
    connect.connect(None, tracking_uri(runs))
    yield
    if ours:
        connect.disconnect()


@pytest.fixture
def cluster(ray_with_serve: None) -> Iterator[None]:
    """A cluster that serves nothing of ours, before the test and after it."""
    undeploy()
    yield
    undeploy()


def register(tracking: Tracking, path: Path, name: str = "topics") -> None:
    with tracking.run("test", "train") as run:
        tracking.register_model(run, path, name, "champion", TEXTS[0], "label")


@pytest.fixture
def server(cluster: None, tracking: Tracking, classifiers: list[Path]) -> str:
    """The address of two replicas that follow an alias, which serve the first version."""
    register(tracking, classifiers[0])
    config = ServeConfig(
        model="models:/topics@champion",
        replicas=(2, 2),
        port=free_port(),
        precision="fp32",
        watch_interval_s=0.3,
        max_batch_tokens=128,
    )
    name, version = tracking.registered_version("models:/topics@champion")
    folder = tracking.download_weights("models:/topics@champion")
    url = deploy(config, [Release(name, version, str(folder))], 1)
    follow_aliases(config, tracking)
    return url


class Checked:
    """Counts answers by version, and those that no version would have given."""

    def __init__(self, expected: dict[str, dict[str, list[float]]]) -> None:
        self.expected = expected
        self.versions: dict[str, int] = {}
        self.wrong = 0

    def __call__(self, body: Any, content: bytes) -> None:
        answer = json.loads(content)
        self.versions[answer["version"]] = self.versions.get(answer["version"], 0) + 1
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        for text, row in zip(texts, answer["data"], strict=True):
            probabilities = self.expected[answer["version"]][text]
            if list(row["scores"].values()) != pytest.approx(probabilities, abs=1e-4):
                self.wrong += 1


def load_in_background(url: str, requests: int, texts: int, check: Checked) -> Any:
    """Start a load from a thread; returns a function that waits for its result."""
    results: list[Any] = []

    def run() -> None:
        work = apply_load(f"{url}/v1/classify", bodies(TEXTS, requests, texts, None), 12, check=check)
        results.append(asyncio.run(work))

    thread = threading.Thread(target=run)
    thread.start()

    def wait() -> Any:
        thread.join(timeout=PATIENCE)
        return results[0]

    return wait


def replica_processes() -> list[int]:
    """The process ids of the encoder replicas that this test started."""
    return serve_processes("Encoder")


def serve_processes(deployment: str) -> list[int]:
    """The process ids of a deployment's replicas that this test started."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def ours(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    # Ray names a process by application and deployment; of a long name, while it computes, only the end.
    name = re.compile(rf"ray::.*:{deployment}\b")
    return [process for process, title in titles.items() if name.match(title) and ours(process)]


def retries(url: str) -> float:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    match = re.search(r'headway_retries_total\{model="topics"\} (.*)', text)
    return float(match.group(1)) if match else 0.0


@pytest.mark.drill  # kills under load: they want the machine for themselves
def test_a_killed_replica_costs_no_request(server, expected):
    rounds = 0
    # A replica that is killed between two packs loses none: kill until one was computing.
    while not retries(server):
        rounds += 1
        assert rounds <= 20, "no replica was computing when it was killed"
        wait_until(lambda: len(replica_processes()) == 2)
        check = Checked(expected)
        wait = load_in_background(server, 600, 3, check)
        while check.versions.get("1", 0) < 50:
            time.sleep(0.001)
        os.kill(replica_processes()[rounds % 2], signal.SIGKILL)
        result = wait()
        assert result.failed == 0 and result.statuses[200] == 600
        assert check.wrong == 0 and check.versions == {"1": 600}
    text = httpx.get(f"{server}/metrics", trust_env=False).text
    assert 'headway_model_info{model="topics",version="1"} 1.0' in text


def first_model(url: str) -> Any:
    """What the server says of its first model."""
    return httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]


def wait_for_version(url: str, version: str) -> None:
    wait_until(lambda: first_model(url)["version"] == version)


def test_the_served_version_follows_the_alias(server, expected, classifiers, tracking):
    check = Checked(expected)
    wait = load_in_background(server, 2000, 3, check)
    register(tracking, classifiers[1])
    wait_for_version(server, "2")
    result = wait()
    assert result.failed == 0 and check.wrong == 0
    assert set(check.versions) <= {"1", "2"} and sum(check.versions.values()) == 2000
    after = Checked(expected)
    load_in_background(server, 50, 1, after)()
    assert after.versions == {"2": 50} and after.wrong == 0


def test_a_version_that_fails_its_check_is_refused(server, expected, classifiers, tracking):
    register(tracking, classifiers[1])
    wait_for_version(server, "2")
    register(tracking, classifiers[2])
    wait_until(lambda: first_model(server)["refused"])
    refused = first_model(server)["refused"]
    assert list(refused) == ["3"] and "away from the stored one" in refused["3"]
    check = Checked(expected)
    load_in_background(server, 50, 1, check)()
    assert check.versions == {"2": 50} and check.wrong == 0
    tracking.client.set_registered_model_alias("topics", "champion", 1)
    wait_for_version(server, "1")


def test_a_second_alias_is_tried_on_a_share_of_requests(cluster, expected, classifiers, tracking):
    for path in classifiers[:2]:
        register(tracking, path, "tried")
    tracking.client.set_registered_model_alias("tried", "champion", 1)
    challenger = {"alias": "challenger", "percent": 40, "shadow_percent": 100}
    config = ServeConfig.model_validate(
        {"model": "models:/tried@champion", "challenger": challenger, "replicas": 1, "port": free_port()}
        | {"precision": "fp32", "watch_interval_s": 0.2}
    )
    folder = tracking.download_weights("models:/tried@champion")
    url = deploy(config, [Release("tried", "1", str(folder))], 1)
    follow_aliases(config, tracking)

    def trials() -> Any:
        return httpx.get(f"{url}/v1/trials", trust_env=False).json()["data"]

    def ask(requests: int) -> dict[str, int]:
        check = Checked(expected)
        assert load_in_background(url, requests, 1, check)().failed == 0
        assert check.wrong == 0
        return check.versions

    assert ask(60) == {"1": 60} and trials() == []  # no version has the alias yet
    tracking.client.set_registered_model_alias("tried", "challenger", 2)
    wait_until(trials)
    versions = ask(200)
    assert sorted(versions) == ["1", "2"] and sum(versions.values()) == 200
    wait_until(lambda: trials()[0]["operations"] and not trials()[0]["waiting"])
    (trial,) = trials()
    assert trial["answered"] == versions["2"] and trial["failed"] == 0
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'headway_trial_compared{model="tried",operation="classify",version="2"}' in text
    # It takes over, which ends the trial; and moving the alias back rolls back.
    tracking.client.set_registered_model_alias("tried", "champion", 2)
    wait_for_version(url, "2")
    assert ask(60) == {"2": 60} and trials() == []
    tracking.client.delete_registered_model_alias("tried", "challenger")
    tracking.client.set_registered_model_alias("tried", "champion", 1)
    wait_for_version(url, "1")
    assert ask(60) == {"1": 60}


def test_several_models_scale_on_their_own_and_requests_choose(cluster, expected, classifiers, folders):
    models = {"one": {"model": "x"}, "words": {"model": "x", "replicas": [0, 1]}}
    settings = {"replicas": 1, "port": free_port(), "precision": "fp32", "downscale_delay_s": 1.0}
    # A replica that has to start first may take long if other tests run at the same time.
    config = ServeConfig.model_validate(settings | {"models": models, "request_timeout_s": 300})
    folder_of = {"one": classifiers[0], "words": folders["tokens"]}
    url = deploy(config, [Release(name, "1", str(path)) for name, path in folder_of.items()], 1)
    with httpx.Client(base_url=url, trust_env=False, timeout=310) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["one", "words"]
        assert len(replica_processes()) == 1
        answer = client.post("/v1/classify", json={"model": "one", "input": TEXTS[0]}).json()
        assert answer["model"] == "one"
        scores = list(answer["data"][0]["scores"].values())
        assert scores == pytest.approx(expected["1"][TEXTS[0]], abs=1e-4)
        # The first request for a model that has scaled to zero starts it.
        assert (
            client.post("/v1/tokens", json={"model": "words", "input": TEXTS[0]}).json()["model"] == "words"
        )
        assert len(replica_processes()) == 2
        # It ends if nobody asks, and starts again for the next request; a hasty client gets an error in time.
        wait_until(lambda: len(replica_processes()) == 1)
        body, hasty = {"model": "words", "input": TEXTS[1]}, {"x-request-timeout-seconds": "0.05"}
        late = client.post("/v1/tokens", json=body, headers=hasty)
        assert late.status_code == 504 and late.json()["error"]["type"] == "deadline_passed"
        assert client.post("/v1/tokens", json=body).json()["model"] == "words"
        for body in ({"model": "other", "input": "x"}, {"input": "x"}):
            refused = client.post("/v1/embeddings", json=body)
            assert refused.status_code == 404 and refused.json()["error"]["type"] == "not_found"
        assert client.post("/v1/classify", json={"model": "words", "input": "x"}).status_code == 422


def test_requests_in_flight_are_answered_when_the_server_stops(cluster, expected, classifiers):
    config = ServeConfig(model="x", replicas=(1, 1), port=free_port(), precision="fp32", max_batch_tokens=64)
    url = deploy(config, [Release("topics", "1", str(classifiers[0]))], 1)
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(
            httpx.post(f"{url}/v1/classify", json={"input": TEXTS * 2}, trust_env=False, timeout=300)
        )

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    while "headway_waiting_tokens" not in httpx.get(f"{url}/metrics", trust_env=False).text:
        time.sleep(0.01)
    undeploy()
    for thread in asking:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 4
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health/live", trust_env=False)


def test_it_serves_beside_others_and_takes_down_nothing_but_its_own(cluster, classifiers, monkeypatch):
    """On a cluster that is shared: another's application, and two servers of ours."""
    from ray import serve

    from headway.cluster import connect

    class Others:
        def __call__(self) -> str:
            return "still here"

    theirs = serve.deployment(Others, ray_actor_options={"num_cpus": 0}).bind()
    serve.run(theirs, name="theirs", route_prefix=None)
    configs = [ServeConfig(model="x", replicas=(1, 1), port=free_port()) for _ in range(2)]
    urls = [
        deploy(config, [Release(f"topics-{number}", "1", str(path))], 1)
        for number, (config, path) in enumerate(zip(configs, classifiers, strict=False))
    ]
    for number, url in enumerate(urls):
        answer = httpx.post(
            f"{url}/v1/classify", json={"input": "A rose."}, trust_env=False, timeout=PATIENCE
        )
        assert answer.json()["model"] == f"topics-{number}"
    monkeypatch.setattr(connect, "_is_local", False)
    monkeypatch.setattr(connect, "disconnect", lambda: None)
    connect.shut_down()
    assert list(serve.status().applications) == ["theirs"]
    assert serve.get_app_handle("theirs").remote().result() == "still here"
    serve.delete("theirs")


def test_its_name_is_that_of_the_settings_or_of_its_address(cluster):
    import ray

    [node] = ray.nodes()
    config = ServeConfig(model="x", port=8123)
    assert application_name(config) == f"headway-{node['NodeManagerAddress']}-8123"
    assert application_name(config.model_copy(update={"application": "search"})) == "search"


def test_a_replica_that_loses_its_gpu_is_replaced_and_costs_no_request(
    cluster, expected, classifiers, tmp_path, monkeypatch
):
    in_use, lost = tmp_path / "in-use", tmp_path / "lost"

    class LosesItsGpuOnce(replica.Encoder):
        def _load(self, release: Release) -> Any:
            model = super()._load(release)
            run = model.run

            def fail_once(operation: Any, pack: Any) -> Any:
                if lost.exists() or not in_use.exists():
                    return run(operation, pack)
                lost.touch()
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

            model.run = fail_once  # type: ignore[method-assign]
            return model

    monkeypatch.setattr(replica, "Encoder", LosesItsGpuOnce)
    config = ServeConfig(
        model="x", replicas=(1, 1), port=free_port(), precision="fp32", request_timeout_s=300
    )
    url = deploy(config, [Release("topics", "1", str(classifiers[0]))], 1)
    before = replica_processes()
    check = Checked(expected)
    in_use.touch()  # not while its health is checked at the start, which computes too
    assert load_in_background(url, 20, 2, check)().failed == 0
    assert check.wrong == 0 and check.versions == {"1": 20}
    assert lost.exists() and replica_processes() != before
    assert retries(url) >= 1


def test_a_gateway_that_restarts_serves_what_it_served_and_refuses_what_it_refused(
    cluster, expected, classifiers, monkeypatch
):
    class DiesOfVersion9(replica.Encoder):
        def _load(self, release: Release) -> Any:
            if release.version == "9":
                os._exit(1)
            return super()._load(release)

    monkeypatch.setattr(replica, "Encoder", DiesOfVersion9)
    config = ServeConfig(
        model="x", replicas=(1, 1), port=free_port(), precision="fp32", request_timeout_s=300
    )
    url = deploy(config, [Release("topics", "1", str(classifiers[0]))], 1)
    assert httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200

    def switch(version: str, path: Path) -> str | None:
        gateway = serve.get_deployment_handle("Gateway", application_name(config))
        problem: str | None = gateway.switch.remote(Release("topics", version, str(path))).result(
            timeout_s=PATIENCE
        )
        return problem

    assert switch("2", classifiers[1]) is None
    assert "away from the stored one" in str(switch("3", classifiers[2]))
    assert switch("9", classifiers[0]) == "3 replicas died while they loaded it"
    before = serve_processes("Gateway")
    os.kill(before[0], signal.SIGKILL)

    def restarted() -> bool:
        try:
            return serve_processes("Gateway") != before and first_model(url)["id"] == "topics"
        except httpx.TransportError:
            return False

    wait_until(restarted)
    assert first_model(url)["version"] == "2"
    assert first_model(url)["refused"].keys() == {"3", "9"}
    check = Checked(expected)
    assert load_in_background(url, 20, 2, check)().failed == 0
    assert check.wrong == 0 and check.versions == {"2": 20}
    replicas = replica_processes()
    assert switch("9", classifiers[0]) == "3 replicas died while they loaded it"
    assert replica_processes() == replicas
    os.kill(replicas[0], signal.SIGKILL)
    ready = f"{url}/health/ready"
    wait_until(lambda: httpx.get(ready, trust_env=False, timeout=30).status_code == 503)
    wait_until(lambda: httpx.get(ready, trust_env=False, timeout=30).status_code == 200)
    assert '"path": "/v1/classify"' in gateway_log()


def gateway_log() -> str:
    """What the gateway has written into Ray Serve's file."""
    opened = {os.path.realpath(link) for link in Path(f"/proc/{serve_processes('Gateway')[0]}/fd").iterdir()}
    return "".join(
        Path(name).read_text() for name in opened if "/serve/replica_" in name and "_Gateway_" in name
    )


def test_a_version_that_departs_from_its_stored_answers_is_not_deployed(cluster, classifiers):
    config = ServeConfig(model="x", replicas=(1, 1), port=free_port(), precision="fp32")
    with pytest.raises(RuntimeError, match=r"did not start:(?s:.*)away from the stored one"):
        deploy(config, [Release("topics", "3", str(classifiers[2]))], 1)


def test_a_config_file_of_ray_serve_can_name_it(cluster, classifiers, tracking):
    register(tracking, classifiers[0], "declared")
    port = free_port()
    arguments = {
        "model": "models:/declared@champion",
        "runs": str(tracking.root),
        "replicas": 1,
        "port": port,
    }
    serve.start(proxy_location="Disabled")
    serve.run(build(arguments), name="declared", route_prefix=None)
    served = httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).json()["data"]
    serve.delete("declared")
    assert [(model["id"], model["version"]) for model in served] == [("declared", "1")]
