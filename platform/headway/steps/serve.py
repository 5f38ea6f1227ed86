"""The step `serve`: puts encoders behind HTTP on Ray Serve, and sends a few held-out texts to them."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from headway.cluster import connect, ray_internals
from headway.config.base import ConfigError
from headway.config.serve import ServeConfig
from headway.data.sources.documents import Document, read_documents
from headway.data.sources.splitting import drop_duplicates, split_documents
from headway.inference.description import describe
from headway.runs.context import Context, StepResult
from headway.runs.lineage.step_run import step_run
from headway.serving.address import check_port
from headway.serving.deploy import deploy, follow_aliases
from headway.serving.resources import cores_per_replica
from headway.serving.rollout.watch import current_releases
from headway.serving.scheduling.messages import Release

_SHOWN = 5
_FIGURES = ("ready_seconds", "requests", "failed", "right", "median_latency_ms")


def run_serve(config: ServeConfig, context: Context) -> StepResult:
    """Deploy the models and wait until they answer; they stay up until the caller disconnects from Ray.

    Raises:
        ConfigError: there is no such model, the port is in use, or demo texts are for a model that is not a
            classifier.
    """
    check_port(config.host, config.port)
    # Raises before Ray starts if there is no such model.
    releases = current_releases(config, context.tracking)
    abilities: dict[str, list[str]] = {
        release.name: list(describe(Path(release.folder)).abilities) for release in releases
    }
    first = releases[0].name
    if config.demo_texts and "classify" not in abilities[first]:
        can = ", ".join(abilities[first])
        raise ConfigError(f"demo_texts: {config.model!r} is not a classifier; it can: {can}")
    url, summary = _served(config, releases, abilities, context)
    if context.pipeline is not None:  # a server outside any pipeline needs no MLflow
        with step_run(config, context) as run:
            figures = {name: float(summary[name]) for name in _FIGURES if summary[name] is not None}
            run.log_metrics([(0, figures)])
    asked = f"; {summary['requests']} requests, {summary['failed']} failed" if summary["requests"] else ""
    names_and_versions = ", ".join(f"{release.name} version {release.version}" for release in releases)
    headline = f"{names_and_versions} at {url}, ready after {summary['ready_seconds']:.1f} s{asked}"
    return StepResult(url, headline, summary=summary)


def _served(
    config: ServeConfig, releases: list[Release], abilities: dict[str, list[str]], context: Context
) -> tuple[str, dict[str, Any]]:
    """Deploy the models and ask them; returns the address and the summary."""
    started = time.monotonic()
    ray_internals.run_at_normal_priority()  # other processes would delay answers otherwise
    connect.connect(context.address, context.tracking.uri)
    say = partial(context.display.waiting, context.step)
    url = deploy(config, releases, cores_per_replica(config), say)
    follow_aliases(config, context.tracking)
    ready = time.monotonic() - started
    summary: dict[str, Any] = {
        "url": url,
        "models": {release.name: release.version for release in releases},
        "abilities": abilities,
        "ready_seconds": round(ready, 2),
    }
    return url, summary | _ask(config, url, context)


def _ask(config: ServeConfig, url: str, context: Context) -> dict[str, Any]:
    """Send held-out texts one at a time, show the first answers, and count failures and right answers."""
    documents = _held_out(config)
    rows, latencies, failed, right = [], [], 0, 0
    with httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
        for document in documents:
            started = time.perf_counter()
            try:
                response = client.post("/v1/classify", json={"input": document.text})
                response.raise_for_status()
            except httpx.HTTPError:
                failed += 1
                continue
            latencies.append(time.perf_counter() - started)
            answer = response.json()["data"][0]
            right += answer["label"] == document.label
            rows.append((_opening(document.text), document.label or "", answer["label"], answer["score"]))
    if rows:
        context.display.table("Held-out texts over HTTP", ["text", "label", "answer", "score"], rows[:_SHOWN])
    median = sorted(latencies)[len(latencies) // 2] * 1000 if latencies else None
    return {"requests": len(documents), "failed": failed, "right": right, "median_latency_ms": median}


def _held_out(config: ServeConfig) -> list[Document]:
    if config.demo_source is None or not config.demo_texts:
        return []
    documents = drop_duplicates(read_documents(config.demo_source))
    held_out = split_documents(documents, config.demo_source.held_out)[1]
    # Sources are read class by class; texts at equal distances show all classes.
    return held_out[:: max(1, len(held_out) // config.demo_texts)][: config.demo_texts]


def _opening(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 48 else flat[:47] + "…"
