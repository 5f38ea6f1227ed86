"""The step `pretrain`: trains an encoder on text, by masked words and pairs of sentences."""

from __future__ import annotations

from headway.config.pretrain import PretrainConfig
from headway.ray_data.corpus import prepared_corpus
from headway.runs.context import Context, StepResult
from headway.runs.journal import first_value, last_value, median_value
from headway.runs.lineage.data_splits import pretraining_splits
from headway.runs.pretraining import (
    PretrainingJob,
    corpus_folder,
    mixture_notes,
    pair_notes,
    start_from,
    teacher_folder,
    truncation,
)
from headway.runs.training import chosen_entry, run_job, tracked
from headway.runs.worker import STARTUP
from headway.tracking.logged_models import Scores, log_reference


def run_pretrain(config: PretrainConfig, context: Context) -> StepResult:
    """Pretrain an encoder and save it in transformers' format."""
    if config.workers:
        # Checked before anything is written: a run that cannot start leaves no trace.
        context.join_cluster(config.min_workers)
    base = start_from(config, context)
    corpus = corpus_folder(config, base, context, prepared_corpus)
    job = PretrainingJob(config, corpus, base, teacher_folder(config, corpus, context))
    batches = job.batches()[0]
    notes = pair_notes(batches) if job.pairs is not None else []
    for note in [*mixture_notes(batches, job), *notes]:
        context.display.step(context.step, note)
    data = pretraining_splits(job.corpus_folder)
    with tracked(config, context, list(data.values())) as run:
        if job.pairs is not None and "truncated_fraction" not in run.logged_steps():
            run.log_metrics(truncation(batches))
        entries = run_job(job, context, run, context.step)
        chosen = chosen_entry(entries, config)
        scores = Scores(chosen.metrics, data["validation"], chosen.step, chosen.time)
        folder = context.folder / "model"
        log_reference(run, context.step, folder, "pretrain", config.model_dump(mode="json"), [scores])
    summary = {
        "steps": config.total_steps(batches),
        "rows": batches.rows,
        "validation_loss_start": first_value(entries, "validation_loss"),
        "validation_loss_end": last_value(entries, "validation_loss"),
        "validation_mlm_loss_end": last_value(entries, "validation_mlm_loss"),
        "tokens_per_second": median_value(entries, "tokens_per_second"),
        "utilisation": median_value(entries, "utilisation"),
        STARTUP: first_value(entries, STARTUP),
        "mlflow_run_id": run.run_id,
    }
    if job.pairs is not None:
        summary["truncated_fraction"] = truncation(batches)[-1][1]["truncated_fraction"]
        name = f"validation_{job.pairs}_accuracy"
        summary[name] = last_value(entries, name)
    headline = (
        f"held-out loss {summary['validation_loss_start']:.3f} → {summary['validation_loss_end']:.3f}, "
        f"{summary['tokens_per_second']:,.0f} tokens/s; call to first step {summary[STARTUP]:.1f} s"
    )
    return StepResult(str(folder), headline, summary=summary)
