"""A registered classifier as MLflow runs it. This file is stored with the model and needs no Headway."""

from __future__ import annotations

from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas


class TextClassifier(mlflow.pyfunc.PythonModel):
    """Turns a column `text` into the columns `label` and `score`, the probability of that label."""

    def load_context(self, context: Any) -> None:
        """Load weights (safetensors) and tokenizer."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = context.artifacts["weights"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
        self.max_length = int(context.model_config["max_length"])

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """Classify each row."""
        import torch

        labels: list[str] = []
        scores: list[float] = []
        texts = [str(text) for text in model_input["text"]]
        for start in range(0, len(texts), 32):
            encoded = self.tokenizer(
                texts[start : start + 32],
                truncation=True,
                max_length=self.max_length,
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                best = self.model(**encoded).logits.softmax(-1).max(-1)
            labels += [self.model.config.id2label[int(index)] for index in best.indices]
            scores += [float(score) for score in best.values]
        return pandas.DataFrame({"label": labels, "score": scores})


mlflow.models.set_model(TextClassifier())
