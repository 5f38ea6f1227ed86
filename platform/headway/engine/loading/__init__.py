"""Make batches ahead of the steps that train on them, in a thread or in processes."""
