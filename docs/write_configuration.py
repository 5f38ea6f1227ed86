"""Writes docs/configuration.md from the classes of settings: python docs/write_configuration.py

A setting's meaning is the `description` of its field. For settings that mean the same in every class it may
be here, in `SHARED`. A setting without a meaning is an error.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from headway.config.base import OPERATIONAL, Config, is_marked
from headway.config.pipeline import STEP_CONFIGS, PipelineConfig

PAGE = Path(__file__).with_name("configuration.md")

SHARED = {
    "alias": "alias to move to the new version",
    "alpha": "the update is scaled by `alpha / rank`",
    "answers_column": "column with the answers",
    "attention_dropout": "fraction of attention weights dropped in training",
    "batch_size": "sequences in an optimizer step, over all workers",
    "batch_warmup": "smaller batches at first",
    "betas": "decay rates of the running means of gradients and of their squares",
    "dropout": "fraction of hidden values dropped in training",
    "epochs": "passes over the training rows; may be a fraction; 1 if `steps` is not set either",
    "eps": "added to the denominator of the update",
    "few_labels": "labels per class, each a comparison of its own; needs `encoder`",
    "gradient_accumulation": "micro-batches in an optimizer step, on each worker",
    "hidden_size": "width, a multiple of `num_attention_heads`; if not set, that of the preset",
    "host": "address to listen on",
    "kind": "kind of task",
    "label_column": "column with the label; in a folder of .txt files, the subfolder is the label",
    "learning_rate": "the highest learning rate, after warm-up",
    "loss": "what training minimises",
    "lowercase": "remove case and accents",
    "masking": "which tokens are masked",
    "max_grad_norm": "gradients with a larger norm are scaled down to it",
    "max_length": "maximum number of tokens in a sequence, [CLS] and [SEP] included",
    "metric": "measure on the validation rows that selects the best trial",
    "model": "a folder, a step, or models:/name@alias",
    "OptimizerConfig.name": "the optimizer",
    "PipelineConfig.name": "name of the folder under `runs/` and of the MLflow experiment",
    "PipelineConfig.steps": "a name of your choice → `use` and the settings of that verb, in order",
    "RegisterConfig.name": "name in the model registry",
    "ScheduleConfig.name": "shape of the schedule; `wsd` is warm-up, stable, decay",
    "num_attention_heads": "heads of each layer; if not set, as in the preset",
    "num_hidden_layers": "number of layers; if not set, as in the preset",
    "objective": "`[mlm]`, `[mlm, nsp]`, `[mlm, sop]` or `[mlm, contrastive]`: masked words, next sentence, "
    "sentence order, and parts of a text that find each other, which keeps an encoder of sentences one",
    "optimizer": "how weights are updated",
    "pair_column": "column with the second text",
    "parallel": "how workers divide the work",
    "port": "TCP port; it must be free",
    "preset": "model size to start from",
    "question_column": "column with the question",
    "rank": "rank of the update",
    "rate": "fraction of the tokens, or words, that is masked",
    "replicas": "min and max, or one number for both",
    "samples": "number of trials",
    "schedule": "how the learning rate changes over the run",
    "seed": "random seed of weights, order, masks and dropout",
    "seeds": "runs of each comparison",
    "start": "sequences in the first step",
    "steps": "optimizer steps; not together with `epochs`",
    "task": "what is learned, and from which texts",
    "text_column": "column with the text, in files and data sets with columns",
    "vocab_size": "size of the vocabulary of the tokenizer that is trained",
    "weight_decay": "of matrices; biases and norms have none",
    "whole_words": "mask all pieces of a word together, as the tokenizer parts words",
}

_OPENING = """# Configuration

Every setting, as defined in `platform/headway/config/`. `python docs/write_configuration.py` writes this page
from the code, and a test fails if it is out of date.

A pipeline is a YAML file with a `name` and `steps`. Each step has a name of your choice, a verb after `use:`,
and the settings of that verb, listed below. The verbs are {verbs}.
`${{step}}` stands for what an earlier step made, `${{step.output}}` for one of several outputs
(`${{sweep.best}}`). A file for a single verb (`headway pretrain FILE`) has that verb's settings at the top
level, without `use`.

`--set path=value` overrides a setting. The value is read as YAML; in a pipeline, the path begins with the
step's name: `--set pretrain.optimizer.learning_rate=2e-3`. An unknown setting, a wrong type or a value out of
range ends in a one-line message and exit code 2, before anything is written.

† marks operational settings: how a step runs, not what comes out of it. They may change in a run that was
interrupted, which then continues (`--set pretrain.workers=6` after a node is lost), and a finished step stays
finished. With `batch_tokens`, the number of workers and of micro-batches counts after all: it says which rows
a step has.
"""

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_NAMES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}


def page() -> str:
    """The whole page."""
    verbs = ", ".join(f"`{verb}`" for verb in STEP_CONFIGS)
    parts = [_OPENING.format(verbs=verbs), *(_section(group) for group in _groups())]
    return "\n".join(parts)


def _groups() -> list[type[Config]]:
    """Every class of settings: the steps with what they inherit, then the groups inside them."""
    found: dict[type[Config], None] = {PipelineConfig: None}
    for step in STEP_CONFIGS.values():
        for group in _with_parts(step):
            found.setdefault(group)
    steps: list[type[Config]] = [PipelineConfig, *STEP_CONFIGS.values()]
    return [*steps, *(group for group in found if group not in steps)]


def _with_parts(group: type[Config]) -> Iterator[type[Config]]:
    yield group
    for base in group.__bases__:
        if issubclass(base, Config) and base is not Config:
            yield from _with_parts(base)
    for field in group.model_fields.values():
        for part in _classes_in(field.annotation):
            yield from _with_parts(part)


def _classes_in(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for part in get_args(annotation):
        yield from _classes_in(part)


def _section(group: type[Config]) -> str:
    lines = [f"## {_title(group)}", "", (group.__doc__ or "").strip().splitlines()[0], ""]
    bases = [base for base in group.__bases__ if issubclass(base, Config) and base is not Config]
    if bases:
        links = ", ".join(f"[{_title(base)}](#{_title(base).lower()})" for base in bases)
        lines += [f"Also has the settings of {links}.", ""]
    lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
    schema = group.model_json_schema()["properties"]
    lines += [_row(group, name, schema[name]) for name in _own_fields(group)]
    return "\n".join([*lines, ""])


def _title(group: type[Config]) -> str:
    verbs = {config: verb for verb, config in STEP_CONFIGS.items()}
    return verbs.get(group) or group.__name__.removesuffix("Config")


def _own_fields(group: type[Config]) -> list[str]:
    return [name for name in group.model_fields if name in inspect.get_annotations(group)]


def _row(group: type[Config], name: str, schema: dict[str, Any]) -> str:
    meaning = group.model_fields[name].description or SHARED.get(f"{group.__name__}.{name}", SHARED.get(name))
    if not meaning:
        raise SystemExit(f"{group.__name__}.{name}: give its field a description")
    if is_marked(group.model_fields[name], OPERATIONAL):
        meaning += " †"
    cells = (f"`{name}`", _kind(schema), _default(group, name), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(schema: dict[str, Any]) -> str:
    """A field's JSON schema in words."""
    match schema:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2].removesuffix("Config")
            return f"[{name}](#{name.lower()})"
        case {"const": value}:
            return f"`{value}`"
        case {"enum": choices}:
            return ", ".join(f"`{choice}`" for choice in choices)
        case {"anyOf": parts} | {"oneOf": parts}:
            return " or ".join(dict.fromkeys(_kind(part) for part in parts if part.get("type") != "null"))
        case {"prefixItems": parts}:
            return f"list of {len(parts)}: {_kind(parts[0])}"
        case {"type": "array"}:
            return f"list of {_kind(schema.get('items', {}))}"
        case {"type": "object"}:
            return "mapping"
    if schema.get("exclusiveMinimum", -1) >= schema.get("minimum", 0):
        schema = {key: value for key, value in schema.items() if key != "minimum"}
    bounds = [f"{sign} {schema[key]:,}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([_NAMES.get(schema.get("type", ""), "any value"), ", ".join(bounds)]).strip()


def _default(group: type[Config], name: str) -> str:
    field = group.model_fields[name]
    if field.is_required():
        return "must be set"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "not set"
    if isinstance(value, Config):
        changed = value.model_dump(mode="json", exclude_unset=True)
        return f"`{json.dumps(changed)}`" if changed else "its defaults"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
