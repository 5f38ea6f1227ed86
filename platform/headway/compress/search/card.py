"""The model card of what a search chose: how it was made, and what it is like beside the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headway.compress.search.report import Findings, markdown
from headway.config.compression.compress import CompressConfig
from headway.runs.lineage.model_card import STORY_TAG
from headway.tracking.data_split import DataSplit


def card(
    config: CompressConfig,
    findings: Findings,
    sizes: tuple[Mapping[str, int], Mapping[str, int]],
    test: Mapping[str, Mapping[str, float]],
    data: Mapping[str, DataSplit],
) -> str:
    """The card as Markdown, with the front matter that model hubs read.

    Args:
        config: of the step.
        findings: of the search.
        sizes: of the original and of the winner: layers, heads, hidden, neurons, vocabulary, weights.
        test: scores on the held-out rows, of `original` and `compressed`.
        data: the rows, by split.
    """
    chosen = findings.choice.candidate
    parts = [
        f"---\nlibrary_name: transformers\ntags: [{STORY_TAG}]\n---",
        f"# A smaller form of `{config.model}`",
        f"## How it was made\n\n{_story(config, findings, chosen.values)}",
        f"## Before and after\n\n{_comparison(findings, sizes, test)}",
        f"## Rows\n\n{_rows(data)}",
    ]
    return "\n\n".join(parts) + "\n"


def _story(config: CompressConfig, findings: Findings, values: Mapping[str, Any]) -> str:
    wanted = [f"{name} {ratio:g}x" for name, ratio in findings.target.ratios.items()]
    target = f"{', '.join(wanted)} at a loss of at most {findings.target.max_quality_loss:.2%}"
    reached = "reached" if findings.choice.reached else "not reached"
    lines = [
        f"- target: {target} of {findings.primary}; {reached}",
        f"- taken: {findings.choice.rule}, {len(findings.candidates)} having been measured",
    ]
    if values:
        cut = ", ".join(f"{path} {value}" for path, value in values.items())
        lines.append(f"- kept of the original: {cut}; the rest was cut by its importance to the task")
        teacher = ", with the original as the teacher" if config.shared["distill"] is not None else ""
        lines.append(f"- then fine-tuned on the training rows{teacher}")
    else:
        lines.append("- nothing was cut, and nothing was trained again")
    lines.append(f"- weights stored in {config.weights}, computed in {findings.choice.candidate.precision}")
    return "\n".join(lines)


def _comparison(
    findings: Findings,
    sizes: tuple[Mapping[str, int], Mapping[str, int]],
    test: Mapping[str, Mapping[str, float]],
) -> str:
    chosen, original = findings.choice.candidate, findings.original
    rows = [
        [f"held-out {name}", f"{value:.4f}", f"{test['compressed'][name]:.4f}"]
        for name, value in test["original"].items()
    ]
    rows.append([f"validation {findings.primary}", f"{original.score:.4f}", f"{chosen.score:.4f}"])
    rows.append(["ms for one text", f"{original.latency_ms:.2f}", f"{chosen.latency_ms:.2f}"])
    rows.append(["texts/s", f"{original.texts_per_second:.0f}", f"{chosen.texts_per_second:.0f}"])
    rows.append(["bytes", f"{original.size:,}", f"{chosen.size:,}"])
    rows += [[name, f"{count:,}", f"{sizes[1][name]:,}"] for name, count in sizes[0].items()]
    return markdown(["", "original, fp32", f"this, {chosen.precision}"], rows)


def _rows(data: Mapping[str, DataSplit]) -> str:
    uses = {
        "train": "taught it, said what is important, and set the scales for int8",
        "validation": "chose it among the candidates",
        "test": "were held out; the original and the one that was taken were scored on them, once",
    }
    lines = [
        f"- {split.name} ({split.rows} rows, digest `{split.digest}`) {uses[name]}"
        for name, split in data.items()
        if name in uses
    ]
    return "\n".join(lines)
