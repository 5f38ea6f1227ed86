"""The contestants of `benchmarks/corpus_scale.py`, and how they are watched."""
