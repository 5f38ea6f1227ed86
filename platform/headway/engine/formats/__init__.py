"""Models that transformers does not know: tables of token vectors, and weights in a few bits."""
