"""The server's metrics, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from headway.serving.rollout.challenger import Challenger

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384)

_COMPARISON_FIGURES = {
    "compared": "Texts that both the serving version and the challenger answered.",
    "agreement": "Fraction of them with the same outcome.",
    "greatest_difference": "Greatest difference between two scores of the same outcome.",
    "min_cosine": "Lowest cosine between two embeddings of the same text.",
}


class Metrics:
    """The gateway's counters, gauges and histograms."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "headway_requests", "Answers by path and status.", ["path", "status"], registry=self._registry
        )
        self.latency = Histogram(
            "headway_request_seconds",
            "From the head of a request to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.stages = Histogram(
            "headway_stage_seconds",
            "Parts of a request: wait (for the tokenizer), tokenize, queue (for a replica), compute.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.waiting = self._gauge("headway_waiting_tokens", "Tokens that wait for a replica.", "model")
        self.replicas = self._gauge("headway_replicas", "Replicas that are up.", "model")
        self.version = self._gauge("headway_model_info", "1 for the serving version.", "model", "version")
        self.tokens = Counter("headway_tokens", "Tokens computed.", ["model"], registry=self._registry)
        self.pack_tokens = Histogram(
            "headway_pack_tokens", "Tokens in a pack.", ["model"], buckets=_TOKENS, registry=self._registry
        )
        self.retries = Counter(
            "headway_retries",
            "Packs sent again after their replica was lost.",
            ["model"],
            registry=self._registry,
        )
        self._comparisons = {
            figure: self._gauge(f"headway_trial_{figure}", text, "model", "version", "operation")
            for figure, text in _COMPARISON_FIGURES.items()
        }
        self._challenged = self._gauge(
            "headway_trial_requests",
            "Requests to a challenger: answered, shed, failed.",
            *("model", "version", "outcome"),
        )

    def show_challengers(self, challengers: Mapping[str, Challenger]) -> None:
        """Show how the challengers do, by model."""
        for gauge in (*self._comparisons.values(), self._challenged):
            gauge.clear()
        for name, challenger in challengers.items():
            version = challenger.release.version
            self._challenged.labels(name, version, "answered").set(challenger.answered)
            self._challenged.labels(name, version, "shed").set(challenger.shed)
            self._challenged.labels(name, version, "failed").set(challenger.failed)
            for operation, comparison in challenger.comparisons.items():
                figures = {"compared": comparison.compared, **comparison.quality()}
                for figure, value in figures.items():
                    self._comparisons[figure].labels(name, version, operation).set(value)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def exposition(self) -> tuple[bytes, str]:
        """All values, and the media type of the text."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
