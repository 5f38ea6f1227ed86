"""A graph of steps: order, cache and summary."""
