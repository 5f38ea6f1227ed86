"""The verb `profile`: profiles a few steps of pretraining, in this process."""

from __future__ import annotations

from headway.config.pretrain import PretrainConfig
from headway.engine.training.profiler import profile_steps
from headway.engine.training.trainer import Trainer
from headway.ray_data.corpus import prepared_corpus
from headway.runs.context import Context, StepResult
from headway.runs.pretraining import PretrainingJob, corpus_folder, start_from, teacher_folder

RECORDED_STEPS = 5


def run_profile(config: PretrainConfig, context: Context) -> StepResult:
    """Train a few steps as `config` says, write a trace, and show the ten most expensive operations."""
    config = config.model_copy(update={"workers": 0})
    base = start_from(config, context)
    corpus = corpus_folder(config, base, context, prepared_corpus)
    job = PretrainingJob(config, corpus, base, teacher_folder(config, corpus, context))
    trainer = Trainer(job.objective(), job.batches()[0], config)
    trace = context.folder / "trace.json"
    operations = profile_steps(trainer, RECORDED_STEPS, trace)
    rows = [(op.name, op.calls, f"{op.milliseconds:,.0f}", f"{op.fraction:.1%}") for op in operations]
    title = f"The most expensive operations of {RECORDED_STEPS} steps"
    context.display.table(title, ["operation", "calls", "ms", "of the time"], rows)
    summary = {"operations": [op._asdict() for op in operations], "trace": str(trace)}
    return StepResult(str(trace), f"{trace}: open it at https://ui.perfetto.dev", summary=summary)
