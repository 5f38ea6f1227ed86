"""The step `register`: puts a classifier into the MLflow model registry."""

from __future__ import annotations

from headway.config.base import ConfigError
from headway.config.register import RegisterConfig
from headway.engine.model.encoder import load_classifier
from headway.inference.golden import store_golden
from headway.runs.context import Context, StepResult
from headway.tracking.references import model_folder

_EXAMPLE = "The first half ended without a goal, but the crowd had seen a fine match."
_GOLDEN = [_EXAMPLE, "Shares fell after the bank cut its forecast for the year.", "A new phone."]


def run_register(config: RegisterConfig, context: Context) -> StepResult:
    """Make a new version of the registered model and point the alias at it.

    Raises:
        ConfigError: the model is not a classifier.
    """
    weights = model_folder(config.model, context.tracking)
    max_length = _check_classifier(config.model, context)
    if not config.model.startswith("models:/"):
        # A server that loads this version refuses it if its answers differ from these.
        store_golden(weights, _GOLDEN)
    tracking = context.tracking
    with tracking.run(context.experiment, context.step, config.model_dump(mode="json")) as run:
        version = tracking.register_classifier(
            run, context.experiment, weights, config.name, config.alias, _EXAMPLE, max_length
        )
    model_uri = f"models:/{config.name}@{config.alias}"
    summary = {"model_uri": model_uri, "version": version, "name": config.name, "alias": config.alias}
    return StepResult(model_uri, f"{model_uri} is version {version}", summary=summary)


def _check_classifier(model: str, context: Context) -> int:
    """Load the model as a server would; returns the maximum number of tokens in a text."""
    from transformers import AutoConfig

    from headway.data.corpus.tokenizer import load_tokenizer

    folder = model_folder(model, context.tracking)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if not any("SequenceClassification" in name for name in config.architectures or []):
        raise ConfigError(f"model: {model!r} is {config.architectures}, not a classifier; fine-tune it first")
    load_classifier(folder, list(config.id2label.values()), random_weights=False, seed=0)
    longest = load_tokenizer(folder).model_max_length
    return int(min(longest, config.max_position_embeddings))
