"""Making a trained encoder cheaper to run."""
