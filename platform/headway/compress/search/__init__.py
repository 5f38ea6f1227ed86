"""Searches for the smallest and fastest form of a model that is good enough."""
