"""The verbs as Python functions: what they take and what they return."""
