"""What an operator watches, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384)

_TRIAL_FIGURES = {
    "compared": "Texts that the version that answers and the challenger both answered.",
    "agreement": "Share of them with the same outcome.",
    "greatest_difference": "Between two probabilities of the same outcome.",
    "min_cosine": "Between two embeddings of the same text.",
}


class Metrics:
    """The gateway's counters."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "headway_requests", "Answers by path and status.", ["path", "status"], registry=self._registry
        )
        self.latency = Histogram(
            "headway_request_seconds",
            "From the request's head to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.waiting = self._gauge("headway_waiting_tokens", "Tokens that wait for a replica.", "model")
        self.replicas = self._gauge("headway_replicas", "Replicas that answered lately.", "model")
        self.version = self._gauge(
            "headway_model_info", "1 for the version that answers.", "model", "version"
        )
        self.tokens = Counter("headway_tokens", "Tokens computed.", ["model"], registry=self._registry)
        self.pack_tokens = Histogram(
            "headway_pack_tokens", "Tokens a pack.", ["model"], buckets=_TOKENS, registry=self._registry
        )
        self.retries = Counter(
            "headway_retries",
            "Packs sent again, their replica being lost.",
            ["model"],
            registry=self._registry,
        )

        self.trials = {
            figure: self._gauge(f"headway_trial_{figure}", text, "model", "version", "operation")
            for figure, text in _TRIAL_FIGURES.items()
        }
        self.trial_requests = self._gauge(
            "headway_trial_requests",
            "Requests of a trial: answered by the challenger, shed, failed.",
            *("model", "version", "outcome"),
        )

    def show_trials(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Show how the versions that are tried do, by model."""
        for gauge in (*self.trials.values(), self.trial_requests):
            gauge.clear()
        for name, report in reports.items():
            for outcome in ("answered", "shed", "failed"):
                self.trial_requests.labels(name, report["version"], outcome).set(report[outcome])
            for operation, figures in report["operations"].items():
                for figure in self.trials.keys() & figures.keys():
                    self.trials[figure].labels(name, report["version"], operation).set(figures[figure])

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def exposition(self) -> tuple[bytes, str]:
        """All values, and the type of the text."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
