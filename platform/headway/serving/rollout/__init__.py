"""A served model's versions: which is current, and how another one compares."""
