"""Runs a trained model, without a server."""
