"""Makes a trained encoder cheaper to run."""
