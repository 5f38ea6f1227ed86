"""A registered model as MLflow runs it: this file travels with the model, and with it the code it imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas


class TextModel(mlflow.pyfunc.PythonModel):
    """Texts in the column `text`, and questions in `question` if it answers them → what a server answers."""

    def load_context(self, context: Any) -> None:
        """Load weights (safetensors) and tokenizer."""
        from headway.inference.predictor import Predictor

        precision = context.model_config["precision"]
        self.predictor = Predictor(Path(context.artifacts["weights"]), precision=precision)

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """Answer each row."""
        questions = [str(text) for text in model_input["question"]] if "question" in model_input else None
        return pandas.DataFrame(
            self.predictor.rows([str(text) for text in model_input["text"]], questions),
            index=model_input.index,
        )


mlflow.models.set_model(TextModel())
