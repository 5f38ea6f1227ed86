"""The kinds of tasks that an encoder can be fine-tuned for: one file each, and what all share in `task`."""
