"""A training run, in this process or on Ray Train's workers."""
