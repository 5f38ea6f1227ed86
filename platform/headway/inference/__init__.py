"""Running a trained model, without a server."""
