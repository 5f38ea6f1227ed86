"""The step `choose`: takes the best of several fine-tuned models, by their scores on validation rows."""

from __future__ import annotations

from headway.config.evaluate import ChooseConfig
from headway.runs.context import Context, StepResult
from headway.runs.finetuning import task_folder
from headway.runs.held_out import score_models
from headway.runs.lineage.data_splits import task_splits
from headway.runs.lineage.step_run import add_models, step_run
from headway.tasks.task import open_task
from headway.tracking.references import model_folder


def run_choose(config: ChooseConfig, context: Context) -> StepResult:
    """Score each model on the validation rows, and hand on the best one; held-out rows stay unseen.

    Raises:
        ConfigError: a model's labels are others than the task's, or no cluster answers.
    """
    models = [model_folder(model, context.tracking).resolve() for model in config.among.values()]
    # The same rows for all, and each model reads them with its own tokenizer.
    tasks = [open_task(task_folder(config.task, model, context)) for model in models]
    primary = tasks[0].primary
    with step_run(config, context, list(task_splits(tasks[0]).values())) as run:
        add_models(run, context, zip(config.among.values(), models, strict=True))
        found = score_models(models, tasks, context, split="validation")
        scores = {name: float(scores[primary]) for name, scores in zip(config.among, found, strict=True)}
        chosen = max(scores, key=lambda name: scores[name])
        run.log_metrics([(0, {f"validation_{primary}": scores[chosen]})])
        run.log_dict({"chosen": chosen, primary: scores}, "choice.json")
    folder = models[list(scores).index(chosen)]
    rows = [(name, score, "chosen" if name == chosen else "") for name, score in scores.items()]
    context.display.table(f"{found[0]['texts']} validation rows", ["", primary, ""], rows)
    others = ", ".join(f"{name} {score:.4f}" for name, score in scores.items() if name != chosen)
    headline = f"{chosen!r}: validation {primary.replace('_', ' ')} {scores[chosen]:.4f} ({others})"
    return StepResult(str(folder), headline, summary={"chosen": chosen, primary: scores})
