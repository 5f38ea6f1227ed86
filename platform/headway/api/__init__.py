"""The verbs as Python functions, what they are given and what they return."""
