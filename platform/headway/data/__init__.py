"""Text → tokenizer → token store → batches, all deterministic, without Ray or MLflow."""
