"""What an encoder is fine-tuned for."""
