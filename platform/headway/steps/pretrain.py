"""The step `pretrain`: masked language modelling, with next-sentence prediction if wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from headway.config import CorpusConfig, PretrainConfig
from headway.data.batches import BatchSource, PretrainingBatches
from headway.data.corpus import Corpus, open_corpus, prepare_corpus, read_splits
from headway.engine.encoder import (
    bert_config,
    load_pretraining_model,
    new_pretraining_model,
    save_model,
)
from headway.engine.objectives import PretrainingObjective
from headway.steps.context import Context, StepResult
from headway.steps.models import model_folder
from headway.steps.training import STARTUP, first_value, last_value, run_job


@dataclass(frozen=True)
class PretrainingJob:
    """Pretraining on a prepared corpus, from scratch or from `start_from`."""

    config: PretrainConfig
    corpus_folder: Path
    start_from: Path | None

    @property
    def next_sentence(self) -> bool:
        """Whether next sentences are predicted too."""
        return "nsp" in self.config.objective

    def objective(self) -> nn.Module:
        """See `TrainingJob`."""
        corpus = Corpus(self.corpus_folder)
        if self.start_from is not None:
            model = load_pretraining_model(self.start_from, self.next_sentence)
        else:
            assert not isinstance(self.config.model, str)
            tokenizer = corpus.tokenizer
            shape = bert_config(
                self.config.model, len(tokenizer), corpus.facts["max_length"], tokenizer.pad_token_id
            )
            model = new_pretraining_model(shape, self.next_sentence, self.config.seed)
        return PretrainingObjective(model, self.next_sentence)

    def batches(self) -> tuple[BatchSource, BatchSource]:
        """See `TrainingJob`."""
        return self._batches("train", None), self._batches("validation", self.config.validation_rows)

    def _batches(self, split: str, most_rows: int | None) -> PretrainingBatches:
        corpus = Corpus(self.corpus_folder)
        return PretrainingBatches(
            corpus.store(split),
            corpus.tokenizer,
            max_length=corpus.facts["max_length"],
            masking=self.config.masking,
            next_sentence=self.next_sentence,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            most_rows=most_rows,
        )

    def save(self, objective: nn.Module, folder: Path) -> None:
        """See `TrainingJob`; the tokenizer goes with the model."""
        assert isinstance(objective, PretrainingObjective)
        save_model(objective.model, folder)
        Corpus(self.corpus_folder).tokenizer.save_pretrained(folder)


def run_pretrain(config: PretrainConfig, context: Context) -> StepResult:
    """Pretrain an encoder and save it in transformers' format."""
    job = PretrainingJob(config, _corpus_folder(config, context), _start_from(config, context))
    rows = job.batches()[0].rows
    with context.tracking.run(context.experiment, context.step, config.model_dump(mode="json")) as run:
        entries = run_job(job, context, run, context.step)
    speeds = [e.metrics["tokens_per_second"] for e in entries if "tokens_per_second" in e.metrics]
    summary = {
        "steps": config.total_steps(rows),
        "rows": rows,
        "validation_loss_start": first_value(entries, "validation_loss"),
        "validation_loss_end": last_value(entries, "validation_loss"),
        "validation_mlm_loss_end": last_value(entries, "validation_mlm_loss"),
        "tokens_per_second": sorted(speeds)[len(speeds) // 2],
        STARTUP: first_value(entries, STARTUP),
        "mlflow_run_id": run.run_id,
    }
    if job.next_sentence:
        summary["validation_nsp_accuracy"] = last_value(entries, "validation_nsp_accuracy")
    headline = (
        f"held-out loss {summary['validation_loss_start']:.3f} → {summary['validation_loss_end']:.3f}, "
        f"{summary['tokens_per_second']:,.0f} tokens/s; call to first step {summary[STARTUP]:.1f} s"
    )
    return StepResult(str(context.folder / "model"), headline, summary=summary)


def _corpus_folder(config: PretrainConfig, context: Context) -> Path:
    if isinstance(config.corpus, CorpusConfig):
        train, held_out, duplicates = read_splits(config.corpus)
        stores = context.stores / "corpora"
        return prepare_corpus(train, held_out, config.corpus, stores, duplicates).folder.resolve()
    return open_corpus(Path(config.corpus).expanduser()).folder.resolve()


def _start_from(config: PretrainConfig, context: Context) -> Path | None:
    if isinstance(config.model, str):
        return model_folder(config.model, context.tracking).resolve()
    return None
