"""What made what, in MLflow: runs of pipelines and steps, rows that they read, cards of their models."""
