"""What an encoder is fine-tuned for: a file a kind, and what they share in `task`."""
