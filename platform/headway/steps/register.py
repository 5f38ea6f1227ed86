"""The step `register`: puts an encoder, with or without a head, into the MLflow model registry."""

from __future__ import annotations

from headway.config.register import RegisterConfig
from headway.inference.description import describe, kind_of
from headway.inference.golden import store_golden
from headway.runs.context import Context, StepResult
from headway.runs.lineage.model_card import ModelCard, model_card
from headway.runs.lineage.provenance import DATA_DIGEST
from headway.runs.lineage.step_run import step_run
from headway.tracking.references import model_folder

_EXAMPLE = "The first half ended without a goal, but the crowd had seen a fine match."
_GOLDEN = [_EXAMPLE, "Shares fell after the bank cut its forecast for the year.", "A new phone."]


def run_register(config: RegisterConfig, context: Context) -> StepResult:
    """Make a new version of the registered model and point the alias at it.

    Raises:
        ConfigError: a model that Headway could not serve.
    """
    weights = model_folder(config.model, context.tracking)
    description = describe(weights)
    kind = kind_of(description)
    if not config.model.startswith("models:/"):
        # A server that loads this version refuses it if its answers differ from these.
        store_golden(weights, _GOLDEN)
    with step_run(config, context) as run:

        def card(model_id: str) -> ModelCard:
            made = {"headway.registered_by": run.run_id}
            written = model_card(run.client, model_id, description, config.name, config.alias, made)
            run.set_tags({name: value for name, value in written.tags.items() if name == DATA_DIGEST})
            run.log_text(written.text, "model_card.md")
            return written

        version = context.tracking.register_model(
            run, weights, config.name, config.alias, _EXAMPLE, kind, card
        ).number
    model_uri = f"models:/{config.name}@{config.alias}"
    summary = {"model_uri": model_uri, "version": version, "name": config.name, "alias": config.alias}
    return StepResult(model_uri, f"{model_uri} is version {version}", summary=summary)
