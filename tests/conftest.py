"""What the tests share: one Ray cluster, tiny corpora of made-up sentences, and models trained on them."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Ray reads this when it starts: every machine looks like the two cores that the limits assume.
os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 2})
os.environ["HF_HUB_OFFLINE"] = "1"
# What Headway keeps for later runs stays out of the user's own cache.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="headway-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# Test modules import MLflow before Headway can quieten it; the command sets the same.
os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
# Ray's processes give way to all others (nice 15): beside other work they would starve until tests time out.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, Ray spells it so
# More threads than one make such small products slower, and sums depend on how many there are.
os.environ["OMP_NUM_THREADS"] = "1"
# Triton reads this when it is imported: without a GPU its kernels are interpreted.
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"
for _name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "HEADWAY_DEBUG"):
    os.environ.pop(_name, None)


@pytest.fixture(autouse=True)
def own_tracking_address() -> Iterator[None]:
    """MLflow's `set_tracking_uri` sets the variable for the whole process; no test leaves it to the next."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


TOPICS = {
    "kitchen": (["cook", "baker", "guest"], ["boils", "tastes", "slices"], ["soup", "bread", "onion"]),
    "harbour": (["sailor", "captain", "pilot"], ["steers", "anchors", "paints"], ["boat", "mast", "ferry"]),
    "garden": (["farmer", "florist", "child"], ["waters", "plants", "prunes"], ["rose", "hedge", "apple"]),
}
"""Classes whose sentences have subjects, verbs and objects of their own, and the rest in common."""

_QUALITIES = ["old", "small", "fresh", "heavy", "quiet", "bright"]
_TIMES = ["at dawn", "before noon", "in the evening", "every morning", "once more"]


def sentence(topic: str, rng: random.Random) -> str:
    """A sentence of a grammar that a very small encoder can learn."""
    subjects, verbs, objects = TOPICS[topic]
    quality, time = rng.choice(_QUALITIES), rng.choice(_TIMES)
    return f"The {rng.choice(subjects)} {rng.choice(verbs)} the {quality} {rng.choice(objects)} {time}."


def labelled_texts(per_class: int, seed: int, sentences: int = 6) -> list[tuple[str, str]]:
    """(text, label) pairs, class after class, no text twice."""
    rng = random.Random(seed)
    pairs: dict[str, str] = {}
    for topic in TOPICS:
        while sum(label == topic for label in pairs.values()) < per_class:
            pairs[" ".join(sentence(topic, rng) for _ in range(sentences))] = topic
    return list(pairs.items())


@pytest.fixture(scope="session")
def pairs() -> list[tuple[str, str]]:
    """120 labelled texts, 40 a class."""
    return labelled_texts(40, seed=1)


@pytest.fixture(scope="session")
def other_pairs() -> list[tuple[str, str]]:
    """As many others."""
    return labelled_texts(40, seed=2)


@pytest.fixture(scope="session")
def texts(pairs: list[tuple[str, str]]) -> list[str]:
    """120 texts of six sentences."""
    return [text for text, _ in pairs]


@pytest.fixture(scope="session")
def labelled_file(pairs: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labelled texts as JSONL with the columns `text` and `label`."""
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    return path


@pytest.fixture(scope="session")
def tiny_shape() -> dict[str, Any]:
    """Settings of an encoder that trains in seconds; no dropout, so that results can be compared."""
    return {
        "preset": "bert-tiny",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "dropout": 0.0,
    }


@pytest.fixture(scope="session")
def corpus(labelled_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The texts as a prepared corpus: vocabulary of at most 300, 32 tokens a sequence."""
    from headway.config.corpus import CorpusConfig
    from headway.data.corpus.prepare import prepare_corpus, read_splits

    config = CorpusConfig(source=str(labelled_file), vocab_size=300, max_length=32)
    train, held_out, duplicates = read_splits(config)
    return prepare_corpus(train, held_out, config, tmp_path_factory.mktemp("corpora"), duplicates)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `runs` folder of the models below, with their MLflow database."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def encoder(corpus: Any, tiny_shape: dict[str, Any], runs: Path) -> Path:
    """Folder of an encoder pretrained in this process."""
    import headway

    result = headway.pretrain(
        corpus=str(corpus.folder),
        model=tiny_shape,
        steps=150,
        batch_size=16,
        evaluate_every=150,
        checkpoint_every=150,
        learning_rate=3e-3,
        runs=runs,
        quiet=True,
    )
    return result.path.resolve()


@pytest.fixture(scope="session")
def classifier(encoder: Path, labelled_file: Path, runs: Path) -> Path:
    """Folder of a classifier fine-tuned in this process."""
    import headway

    result = headway.finetune(
        str(labelled_file),
        model=encoder,
        max_length=48,
        epochs=60,  # after 40, most seeds tell only two of the three classes apart
        batch_size=16,
        learning_rate=3e-3,
        evaluate_every=1000,
        checkpoint_every=1000,
        runs=runs,
        quiet=True,
    )
    return result.path.resolve()


@pytest.fixture(scope="session")
def ray_cluster(runs: Path) -> Iterator[None]:
    """A local Ray cluster of two cores, started by Headway once for all tests that ask for it."""
    from headway.cluster import connect
    from headway.tracking import tracking_uri

    connect.connect(None, tracking_uri(runs))
    yield
    connect.disconnect()


@pytest.fixture
def pretend_nodes(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes the cluster look as if it had nodes of these resources."""
    import ray

    def pretend(*nodes: dict[str, float]) -> None:
        total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])

    return pretend


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., Any]:
    """A function that makes the context of a step, under a `runs` folder of the test's own."""
    from headway.display import Display
    from headway.runs.context import Context
    from headway.tracking import Tracking

    def make(step: str, root: Path | None = None) -> Context:
        root = root or tmp_path / "runs"
        folder = root / "test" / step
        folder.mkdir(parents=True, exist_ok=True)
        return Context("test", step, root, folder, Tracking.at(root), Display(quiet=True))

    return make


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[[Any], Path]:
    """A function that writes settings to a YAML file."""
    import yaml

    def write(settings: Any) -> Path:
        path = tmp_path / "pipeline.yaml"
        path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings, sort_keys=False))
        return path

    return write
