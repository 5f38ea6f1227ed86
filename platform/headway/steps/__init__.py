"""One file a verb: what a pipeline's steps do, on Ray, tracked in MLflow."""
