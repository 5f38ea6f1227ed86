"""Ray: clusters, their processes, and groups of workers."""
