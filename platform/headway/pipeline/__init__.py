"""Runs a graph of steps: order, cache and summary."""
