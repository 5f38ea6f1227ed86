"""From requests to packs of tokens, and on to replicas."""
