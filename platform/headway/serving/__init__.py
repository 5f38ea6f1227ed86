"""Trained encoders behind HTTP, on Ray Serve."""
