"""Ray: the cluster, its processes and groups of workers."""
