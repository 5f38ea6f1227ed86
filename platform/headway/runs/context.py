"""What a step receives besides its settings, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from headway.cluster import connect
from headway.cluster.capacity import require_processes
from headway.cluster.worker_group import call_resources
from headway.display import Display
from headway.runs.lineage.pipeline_run import PipelineRun
from headway.tracking import Tracking


@dataclass(frozen=True)
class Context:
    """Where a step works.

    Attributes:
        experiment: the name of the pipeline, and of its MLflow experiment.
        step: the step's name in the pipeline.
        root: folder of everything that Headway makes, `runs/`.
        folder: of what this step makes; it exists, and may contain what an unfinished run left.
        tracking: MLflow.
        display: the screen.
        address: of the Ray cluster; None for the one in `RAY_ADDRESS`, or a local one.
        pipeline: the MLflow run of the whole pipeline; None for a step outside any.
    """

    experiment: str
    step: str
    root: Path
    folder: Path
    tracking: Tracking
    display: Display
    address: str | None = None
    pipeline: PipelineRun | None = None

    def join_cluster(self, processes: int = 1) -> None:
        """Connect to Ray, and wait until the cluster has room for so many training processes, which is said.

        Raises:
            ConfigError: it never will, or no cluster answers.
            TimeoutError: its autoscaler has not added enough nodes within half an hour.
        """
        say = partial(self.display.waiting, self.step)
        require_processes(processes, self.address, self.tracking.uri, say)
        self.display.settle()

    def compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of `function(*arguments, threads)`, called where models are trained.

        That is this process, with None for `threads`, or, since the driver may have no GPU and few cores, a
        node of the cluster, with the number of its cores.

        Raises:
            ConfigError: no cluster answers.
            Exception: whatever the function raised.
        """
        if connect.will_be_local(self.address):
            return function(*arguments, None)
        self.join_cluster()
        resources = call_resources(1)
        call = (*arguments, resources.cpus)
        return connect.map_on_cluster(function, [call], resources.cpus, resources.gpus)[0]

    @property
    def stores(self) -> Path:
        """Folder of prepared corpora and tasks, shared by all pipelines under `root`."""
        return self.root / "stores"


@dataclass(frozen=True)
class StepResult:
    """What a finished step leaves; stored as JSON, so that the step need not run again.

    Attributes:
        output: what `${step}` stands for in later steps: a folder, or a model's URI.
        headline: the result in one line.
        outputs: what `${step.name}` stands for.
        summary: figures for `summary.json`.
    """

    output: str
    headline: str
    outputs: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
