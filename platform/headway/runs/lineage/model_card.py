"""The model card of a registered version: what it is, how it scores, what it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from headway.inference.description import Description
from headway.runs.lineage.provenance import DATA_DIGEST, SETTINGS_DIGEST, VERSION

_MAX_CHARACTERS = 5000
"""What MLflow's database keeps of a description."""
_MAX_LABELS = 20
_MAX_SETTINGS = 40

COMMIT = "mlflow.source.git.commit"
_DIRTY = "mlflow.source.git.dirty"
_STATES = {"true": "with uncommitted changes", "false": "clean"}
_TOLD = {
    "headway.version": "Headway",
    "headway.packages": "packages",
    "headway.cluster": "cluster",
    "headway.gpus": "GPUs",
    SETTINGS_DIGEST: "digest of the settings",
    DATA_DIGEST: "digest of the data",
}


class ModelCard(NamedTuple):
    """What a registered version says of itself.

    Attributes:
        text: Markdown.
        tags: its scores on held-out rows, and what it was made of, for searches.
    """

    text: str
    tags: dict[str, str]


def model_card(
    client: Any, model_id: str, description: Description, name: str, alias: str, also: Mapping[str, str]
) -> ModelCard:
    """Write the card of a logged model from what MLflow knows of it.

    Args:
        client: MLflow's.
        model_id: of the logged model.
        description: of the encoder.
        name: in the registry.
        alias: in the registry.
        also: tags that are added.
    """
    logged = client.get_logged_model(model_id)
    run = client.get_run(logged.source_run_id)
    metrics = sorted(logged.metrics or [], key=lambda metric: metric.timestamp)
    scores = {(metric.key, metric.dataset_name or ""): metric.value for metric in metrics}
    parts = [
        f"# {name}\n\n{_sentence(description)}",
        f"## Scores\n\n{_scores(scores)}",
        f"## Data\n\n{_data(run.inputs.dataset_inputs)}",
        f"## Made by\n\n{_made_by(run)}",
        f"## Use\n\n```bash\nheadway predict --model models:/{name}@{alias} 'A text.'\n"
        f"headway serve models:/{name}@{alias}\n```",
        _settings(logged.params or {}),
    ]
    text = "\n\n".join(part for part in parts if part)
    kept = {key: run.data.tags[key] for key in (COMMIT, _DIRTY, VERSION, DATA_DIGEST, SETTINGS_DIGEST)
            if run.data.tags.get(key)}  # fmt: skip
    return ModelCard(text[:_MAX_CHARACTERS], {**_held_out(scores), **kept, **also})


def _sentence(description: Description) -> str:
    layers = f"{description.layers} layers" if description.layers else "a table of token vectors"
    shape = f"{layers}, hidden size {description.hidden_size}"
    said = f"`{description.architecture}` ({shape}) for texts of up to {description.max_length} tokens"
    labels = description.labels
    if len(labels) > 1:
        more = f" and {len(labels) - _MAX_LABELS} more" if len(labels) > _MAX_LABELS else ""
        said += f"; {len(labels)} classes: {', '.join(labels[:_MAX_LABELS])}{more}"
    return f"{said}."


def _scores(scores: Mapping[tuple[str, str], float]) -> str:
    if not scores:
        return "None were measured."
    rows = [f"| {key} | {value:.4f} | {data} |" for (key, data), value in sorted(scores.items(), key=_order)]
    note = "" if _held_out(scores) else "\n\nNot scored on held-out rows: `evaluate` does that."
    return "\n".join(["| score | value | rows |", "|---|---|---|", *rows]) + note


def _order(item: tuple[tuple[str, str], float]) -> tuple[bool, str]:
    """Held-out rows first."""
    (key, _), _ = item
    return not key.startswith("test_"), key


def _held_out(scores: Mapping[tuple[str, str], float]) -> dict[str, str]:
    return {key: f"{value:.4f}" for (key, _), value in scores.items() if key.startswith("test_")}


def _data(inputs: Sequence[Any]) -> str:
    if not inputs:
        return "Not known."
    rows = []
    for entry in inputs:
        data, source = entry.dataset, json.loads(entry.dataset.source)
        count = json.loads(data.profile or "{}").get("num_rows", "")
        place = source.get("uri") or source.get("path") or "memory"
        rows.append(f"| {data.name} | {count} | `{data.digest}` | {place} |")
    return "\n".join(["| rows | count | digest | source |", "|---|---|---|---|", *sorted(rows)])


def _made_by(run: Any) -> str:
    tags = run.data.tags
    link = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    lines = [f"- run [{run.info.run_name}]({link}) by {tags.get('mlflow.user', 'somebody')}"]
    commit = tags.get(COMMIT)
    if commit:
        lines.append(f"- commit `{commit}`, {_STATES.get(tags.get(_DIRTY, ''), 'not checked')}")
    lines += [f"- {title}: {tags[name]}" for name, title in _TOLD.items() if tags.get(name)]
    return "\n".join(lines)


def _settings(params: Mapping[str, str]) -> str:
    """Those that are set, without lists of paths."""
    told = [f"{name}={value}" for name, value in sorted(params.items()) if value not in ("None", "")]
    if not told:
        return ""
    more = f", and {len(told) - _MAX_SETTINGS} more" if len(told) > _MAX_SETTINGS else ""
    return f"## Settings\n\n`{', '.join(told[:_MAX_SETTINGS])}`{more}"
