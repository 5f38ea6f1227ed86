"""The step `compress`: searches on Ray Tune for the smallest, fastest form of a model that is good enough."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from headway.compress.search.candidates import Candidate, choose
from headway.compress.search.card import card
from headway.compress.search.job import SearchJob
from headway.compress.search.measuring import Speed, folder_bytes
from headway.compress.search.outcome import candidates_of, measure_again
from headway.compress.search.report import Findings, Original, comma_separated, draw, markdown, table
from headway.compress.search.space import Plan, Whole, first_points, search_space
from headway.compress.search.study import score_served, study_original
from headway.compress.search.trial import run_candidate
from headway.config.compression.compress import CompressConfig
from headway.config.finetune import FinetuneConfig
from headway.data.atomic import atomic_folder, link_or_copy, once, write_atomically
from headway.data.corpus.tokenizer import load_tokenizer
from headway.engine.model.encoder import load_as_saved
from headway.engine.pruning.cut import sizes_of
from headway.runs.context import Context, StepResult
from headway.runs.finetuning import FinetuningJob, task_folder
from headway.runs.lineage.data_splits import task_splits
from headway.runs.lineage.step_run import add_models, step_run
from headway.runs.teaching import taught_job
from headway.sweeps.ended_trials import EndedTrials
from headway.sweeps.ledger import Ledger, Trial, TrialState
from headway.sweeps.report.leaderboard import Leaderboard
from headway.sweeps.report.trial_log import TrialLog
from headway.sweeps.resources import TrialResources, trial_resources
from headway.sweeps.search.sampler import Sampler, TrialSource, make_searcher
from headway.sweeps.search.space import trial_settings
from headway.sweeps.time_budget import TimeBudget
from headway.sweeps.tuning import run_trials, set_quiet, start_ahead, stop_rest
from headway.sweeps.winner import finished_trials, outcome_of
from headway.tasks.preparation import retokenized
from headway.tracking import Run
from headway.tracking.data_split import DataSplit
from headway.tracking.logged_models import Scores, log_reference
from headway.tracking.references import model_folder


def run_compress(config: CompressConfig, context: Context) -> StepResult:
    """Search, take the candidate that `headway.compress.search.candidates.choose` describes, and score it.

    Called again in the same folder after the driver died, it continues the search: candidates that were
    measured are not made again, and those that had begun continue.

    Raises:
        ConfigError: the model was not fine-tuned on the task, cannot be cut, or lacks what is searched over.
        RuntimeError: every candidate failed.
    """
    original = model_folder(config.model, context.tracking).resolve()
    base = _base(config, original, context)
    model, tokenizer = load_as_saved(original), load_tokenizer(original)
    whole = Whole(sizes_of(model), len(tokenizer), model.num_parameters())
    space = search_space(config, whole.sizes, base.task, tokenizer)
    ledger = Ledger(context.folder.resolve() / "trials")
    context.join_cluster()
    resources = trial_resources(config, base.config, config.samples)
    start_ahead(resources)
    data = task_splits(base.task)
    with step_run(config, context, list(data.values())) as run:
        add_models(run, context, [(config.model, original)])
        study = partial(context.compute, study_original, original, base.task_folder, config.calibration_rows)
        studied = once(context.folder / "original.json", partial(study, config.seed, "layers" in space))
        score = studied["scores"][base.task.primary]
        stores = (context.stores / "tasks").resolve()
        job = SearchJob(config, taught_job(base, context), whole.sizes, studied["layer_order"], score, stores)
        with TrialLog(context, run) as log, EndedTrials(ledger, job.settings_of, job.metrics) as ended:
            board = Leaderboard(ledger, context.display, list(space), job.metrics, log, ended)
            board.reconcile()
            plan = Plan(config.samples, config.seed, first_points(space, whole, config))
            _search(job, context, resources, ledger, Sampler(plan, space, board.metrics), board)
        findings = _findings(job, ledger, context)
        winner = next(one for one in ledger.trials() if one.folder.name == findings.choice.candidate.name)
        test = once(context.folder / "test.json", partial(_test, job, winner, findings, context))
        model = _write(job, winner, findings, test, data, context)
        _tell(job, findings, test, data, context, run)
    ledger.keep_only(winner)
    return StepResult(str(model), _headline(findings, test), summary=_summary(findings, test, ledger))


def _base(config: CompressConfig, original: Path, context: Context) -> FinetuningJob:
    """The fine-tuning of all candidates, as the original itself would do it."""
    task = task_folder(config.task, original, context)
    shared = config.shared | {"model": str(original), "task": str(task)}
    return FinetuningJob(trial_settings(FinetuneConfig, shared, {}), original, task)


def _search(
    job: SearchJob,
    context: Context,
    resources: TrialResources,
    ledger: Ledger,
    sampler: Sampler,
    board: Leaderboard,
) -> None:
    """Try candidates that have not ended yet, as long as there is time."""
    config = job.config
    budget = TimeBudget(ledger, config.time_budget_s, board.metric, board.mode)
    if not ledger.trials():
        ledger.new({})  # the original as it is, which no space needs to contain
    for trial in ledger.trials():
        sampler.begin(trial)
        if trial.ended is not None:
            sampler.tell(trial, outcome_of(trial, trial.ended.state, job.settings_of))
    remaining = config.samples - sum(trial.state.is_terminal for trial in ledger.trials())
    if remaining > 0 and not budget.is_over():
        set_quiet()
        searcher = make_searcher(sampler, ledger, job.settings_of, budget)
        candidate = partial(run_candidate, job=job, folder=ledger.folder, resources=resources.each)
        source = TrialSource(remaining, searcher, {})
        run_trials(candidate, source, None, budget, board, resources, context.folder)
    if budget.is_over():
        stop_rest(ledger, board)


def _findings(job: SearchJob, ledger: Ledger, context: Context) -> Findings:
    """All candidates, those whose models are left measured again, and the one that is taken."""
    ended = [one.trial for one in finished_trials(ledger, job.settings_of, job.metrics)]
    kept = [trial for trial in ended if trial.model.is_dir()]
    measure = partial(context.compute, measure_again, job, kept)
    again = once(context.folder / "final.json", measure)
    finals = [Candidate(**row) for row in again["candidates"]]
    known = {(candidate.name, candidate.precision) for candidate in finals}
    earlier = [candidate for trial in ended for candidate in candidates_of(trial)]
    others = [candidate for candidate in earlier if (candidate.name, candidate.precision) not in known]
    primary, target = job.base.task.primary, job.config.target
    choice = choose(finals, primary, job.score, target)
    original = Original(job.score, *Speed(*again["original"]), folder_bytes(job.original))
    return Findings(primary, original, [*finals, *others], choice, target)


def _test(job: SearchJob, winner: Trial, findings: Findings, context: Context) -> dict[str, dict[str, float]]:
    """Scores of the original and of the winner on the held-out rows, which no candidate has seen."""
    task = retokenized(job.base.task, load_tokenizer(winner.model), job.stores)
    models = [(job.original, "fp32"), (winner.model, findings.choice.candidate.precision)]
    folders = [job.base.task_folder, task.folder.resolve()]
    before, after = context.compute(score_served, models, folders)
    return {"original": before, "compressed": after}


def _write(
    job: SearchJob,
    winner: Trial,
    findings: Findings,
    test: Mapping[str, Mapping[str, float]],
    data: Mapping[str, DataSplit],
    context: Context,
) -> Path:
    """Put the winner's model into the step's folder, with its card."""
    sizes = (_sizes(job.original), _sizes(winner.model))
    target = context.folder / "model"
    with atomic_folder(target) as draft:
        shutil.copytree(winner.model, draft, copy_function=link_or_copy, dirs_exist_ok=True)
        write_atomically(draft / "README.md", card(job.config, findings, sizes, test, data))
    return target


def _sizes(folder: Path) -> dict[str, int]:
    model = load_as_saved(folder)
    sizes = sizes_of(model)._asdict()
    return sizes | {"vocabulary": len(load_tokenizer(folder)), "weights": model.num_parameters()}


def _tell(
    job: SearchJob,
    findings: Findings,
    test: Mapping[str, Mapping[str, float]],
    data: Mapping[str, DataSplit],
    context: Context,
    run: Run,
) -> None:
    """Show the candidates, and log them, the winner and its scores."""
    chosen = findings.choice.candidate
    columns, rows = table(findings)
    context.display.table("Candidates (* on the Pareto front, → taken)", columns, rows)
    run.log_text(markdown(columns, rows), "candidates.md")
    run.log_text(comma_separated(findings), "candidates.csv")
    run.log_file(draw(findings, context.folder))
    run.log_text((context.folder / "model" / "README.md").read_text(encoding="utf-8"), "model_card.md")
    figures = {f"{name}_ratio": ratio for name, ratio in chosen.ratios.items()}
    figures |= {"quality_loss": findings.loss(chosen), "reached": float(findings.choice.reached)}
    figures |= {f"test_{name}": value for name, value in test["compressed"].items()}
    figures |= {f"original_test_{name}": value for name, value in test["original"].items()}
    run.log_metrics([(0, figures)])
    scores = [
        Scores({f"validation_{findings.primary}": chosen.score}, data["validation"]),
        Scores({f"test_{name}": value for name, value in test["compressed"].items()}, data["test"]),
    ]
    settings = job.config.model_dump(mode="json") | {"chosen": chosen.as_dict()}
    made = {"headway.trial": chosen.name}
    log_reference(run, context.step, context.folder / "model", job.base.task.kind, settings, scores, made)


def _summary(findings: Findings, test: Mapping[str, Mapping[str, float]], ledger: Ledger) -> dict[str, Any]:
    states = [trial.state for trial in ledger.trials()]
    return {
        "trials": len(states),
        "failed": states.count(TrialState.FAILED),
        "reached": findings.choice.reached,
        "rule": findings.choice.rule,
        "primary": findings.primary,
        "original": findings.original._asdict(),
        "chosen": findings.choice.candidate.as_dict(),
        "quality_loss": findings.loss(findings.choice.candidate),
        "front": [candidate.as_dict() for candidate in findings.front],
        "test": test,
    }


def _headline(findings: Findings, test: Mapping[str, Mapping[str, float]]) -> str:
    chosen, primary = findings.choice.candidate, findings.primary
    what = ", ".join(f"{path} {value}" for path, value in chosen.values.items()) or "nothing cut"
    ratios = ", ".join(f"{name} {ratio:.2f} x" for name, ratio in chosen.ratios.items())
    before, after = (test[which][primary] for which in ("original", "compressed"))
    said = "the target is reached" if findings.choice.reached else "no candidate reaches the target"
    return (
        f"{said}; taken is {findings.choice.rule}: {what}, {chosen.precision}; {ratios}; held-out "
        f"{primary.replace('_', ' ')} {before:.4f} → {after:.4f}"
    )
