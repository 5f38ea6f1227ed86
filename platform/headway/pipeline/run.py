"""Runs a pipeline's steps in order, and reuses the results of those that are already done.

A step is a pure function of its settings and of the content of what it reads. A digest of these
(`pipeline/digest.py`) names its folder, `runs/<pipeline>/<step>/<digest>`. `result.json` is written last: a
step whose folder has it is done, and one whose folder lacks it is continued.
"""

from __future__ import annotations

import importlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import headway
from headway.cluster import connect
from headway.config.base import Config, ConfigError
from headway.config.compression.export import ExportConfig
from headway.config.compression.prune import PruneConfig
from headway.config.compression.quantize import QuantizeConfig
from headway.config.compression.static import StaticConfig
from headway.config.corpus import CorpusConfig
from headway.config.loading import check_pipeline, step_config
from headway.config.pipeline import STEP_OUTPUTS, PipelineConfig
from headway.config.register import RegisterConfig
from headway.data.atomic import flush_to_disk, write_atomically
from headway.display import Display, duration
from headway.pipeline.checks import check_inputs
from headway.pipeline.digest import Inputs, input_names, step_digest
from headway.pipeline.failure import failure_kept
from headway.runs.context import Context, StepResult
from headway.runs.lineage.pipeline_run import PipelineRun
from headway.runs.lineage.provenance import git_facts
from headway.runs.lineage.step_run import recorded_run
from headway.tracking import Tracking

if TYPE_CHECKING:
    from headway.runs.lease import Lease

_REFERENCE = re.compile(r"^\$\{([^.}]+)(?:\.([^}]+))?\}$")
RESULT = "result.json"
"""The file that a step's folder has once it is done."""
_NEVER_CACHED = {"serve"}
_WITHOUT_RAY = (CorpusConfig, RegisterConfig, PruneConfig, QuantizeConfig, StaticConfig, ExportConfig)


@dataclass(frozen=True)
class FinishedStep:
    """A step that is done: its result, how long it took now, and whether it was cached."""

    result: StepResult
    seconds: float
    cached: bool


def run_pipeline(
    config: PipelineConfig,
    root: Path,
    display: Display,
    address: str | None = None,
) -> dict[str, Any]:
    """Run the steps that are not done yet, in the order in which they are written.

    Args:
        config: the pipeline.
        root: folder of everything that is made, `runs/`.
        display: the screen.
        address: of a Ray cluster; None for the one in `RAY_ADDRESS`, or a local one.

    Returns:
        The summary, also written to `<root>/<name>/summary.json`.

    Raises:
        ConfigError: there is a mistake in the settings; nothing was run or written.
    """
    check_pipeline(config)
    check_references(config)
    check_sources(config)
    check_inputs(config)
    tracking = Tracking.at(root)
    git_facts()  # asked before Ray is connected
    inputs = Inputs(root, tracking)
    on_ray = any(uses_ray(step_config(name, settings)) for name, settings in config.steps.items())
    folder = root / config.name
    pipeline = PipelineRun(config.name, config.model_dump(mode="json"), folder, tracking)
    finished: dict[str, FinishedStep] = {}
    with pipeline.ending():
        for name, settings in config.steps.items():
            context = Context(
                experiment=config.name,
                step=name,
                root=root,
                folder=folder / name,
                tracking=tracking,
                display=display,
                address=address,
                pipeline=pipeline,
            )
            with inputs.remembered():
                finished[name] = _run_step(settings, context, finished, inputs, on_ray)
        summary = _summary(config, finished)
        pipeline.log_summary(summary)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def step_function(verb: str) -> Callable[[Any, Context], StepResult]:
    """The function of a verb, imported when needed, since some import Ray or a web server."""
    function: Callable[[Any, Context], StepResult] = getattr(
        importlib.import_module(f"headway.steps.{verb}"), f"run_{verb}"
    )
    return function


def uses_ray(config: Config) -> bool:
    """Whether a step with these settings needs a Ray cluster."""
    return not isinstance(config, _WITHOUT_RAY) and getattr(config, "workers", 1) != 0


def _run_step(
    settings: dict[str, Any],
    context: Context,
    finished: dict[str, FinishedStep],
    inputs: Inputs,
    on_ray: bool,
) -> FinishedStep:
    started = time.monotonic()
    verb = settings["use"]
    config = step_config(context.step, _resolve(settings, finished))
    folder = context.folder / _digest(settings, context, finished, inputs)
    result = None if verb in _NEVER_CACHED else cached_result(folder, context.tracking)
    if result is not None:
        context.display.step(context.step, f"cached: {result.headline}")
        if context.pipeline is not None:
            context.pipeline.add_cached(context.step, recorded_run(folder))
        return FinishedStep(result, time.monotonic() - started, cached=True)
    if on_ray:
        connect.warm_up(context.address, verb)
    context.display.step(context.step, f"{verb} …")
    with failure_kept(folder), _lease(folder, context).held():
        result = step_function(verb)(config, _in_folder(context, folder))
        write_result(folder, result)
    seconds = time.monotonic() - started
    context.display.step(context.step, f"{result.headline}  ({duration(seconds)})")
    return FinishedStep(result, seconds, cached=False)


def _lease(folder: Path, context: Context) -> Lease:
    """The right to work in a step's folder; imported when a step runs, since it loads torch."""
    from headway.engine.checkpoint.storage import Folder
    from headway.runs.lease import Lease

    return Lease(Folder(folder), tell=context.display.line)


def write_result(folder: Path, result: StepResult) -> None:
    """Say in a step's folder that it is done.

    What the result vouches for is brought to disk first: a machine may fail right after it is written.
    """
    for output in {result.output, *result.outputs.values()}:
        if Path(output).exists():
            flush_to_disk(Path(output))
    write_atomically(folder / RESULT, json.dumps(asdict(result), indent=2))


def _in_folder(context: Context, folder: Path) -> Context:
    return Context(**(vars(context) | {"folder": folder}))


def cached_result(folder: Path, tracking: Tracking) -> StepResult | None:
    """The result of a finished step, if what it made still exists."""
    path = folder / RESULT
    if not path.exists():
        return None
    result = StepResult(**json.loads(path.read_text(encoding="utf-8")))
    if result.output.startswith("models:/"):
        try:
            version = tracking.registered_version(result.output)[1]
        except ConfigError:
            return None
        # The alias may have moved to what another run registered.
        return result if version == str(result.summary.get("version", version)) else None
    return result if Path(result.output).exists() else None


def _digest(
    settings: dict[str, Any], context: Context, finished: dict[str, FinishedStep], inputs: Inputs
) -> str:
    """The digest of a step; what it refers to is in it by its content, wherever that lies."""
    known = _referred(settings, finished, lambda output: f"${{{inputs.content_of(output)}}}")
    return step_digest(settings["use"], step_config(context.step, known), inputs)


def _resolve(settings: dict[str, Any], finished: dict[str, FinishedStep]) -> dict[str, Any]:
    """Settings with every `${step}` and `${step.name}` replaced by what it stands for."""
    return _referred(settings, finished, lambda output: output)


def _referred(
    settings: dict[str, Any], finished: dict[str, FinishedStep], known_as: Callable[[str], str]
) -> dict[str, Any]:
    """Settings with every reference replaced by what the output that it stands for is known as."""

    def by_value(value: str) -> str:
        match = _REFERENCE.match(value)
        if not match:
            return value
        result = finished[match[1]].result
        if match[2] is None:
            return known_as(result.output)
        if match[2] not in result.outputs:
            known = ", ".join(result.outputs) or "none"
            raise ConfigError(f"{value}: step {match[1]!r} has no output {match[2]!r}; it has: {known}")
        return known_as(result.outputs[match[2]])

    replaced: dict[str, Any] = _map_text(settings, by_value)
    return replaced


def check_references(config: PipelineConfig) -> None:
    """Refuse a reference to a step that does not exist or comes later, or to an output it does not have."""
    outputs: dict[str, tuple[str, ...]] = {}
    for name, settings in config.steps.items():
        for text in _texts(settings):
            match = _REFERENCE.match(text)
            if not match:
                continue
            step, output = match.groups()
            if step not in outputs:
                known = ", ".join(outputs) or "none"
                raise ConfigError(f"{name}: {text} names no earlier step; earlier steps: {known}")
            if output is not None and output not in outputs[step]:
                known = ", ".join(outputs[step]) or "none"
                raise ConfigError(f"{name}: {text}: step {step!r} has no output {output!r}; it has: {known}")
        outputs[name] = STEP_OUTPUTS.get(settings["use"], ())


def check_sources(config: PipelineConfig) -> None:
    """Refuse a missing source before anything is computed."""
    for name, settings in config.steps.items():
        try:
            list(input_names(step_config(name, settings)))
        except ConfigError as error:
            raise ConfigError(f"{name}.{error}") from error


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _map_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _summary(config: PipelineConfig, finished: dict[str, FinishedStep]) -> dict[str, Any]:
    steps = {name: step.result.summary for name, step in finished.items()}
    return {
        "name": config.name,
        "headway_version": headway.__version__,
        **steps,
        "wall_seconds": {name: round(step.seconds, 2) for name, step in finished.items()},
        "cached": [name for name, step in finished.items() if step.cached],
        "outputs": {name: step.result.output for name, step in finished.items()},
    }
