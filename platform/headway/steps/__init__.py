"""What the steps of a pipeline do, on Ray, tracked in MLflow; one file for each verb."""
