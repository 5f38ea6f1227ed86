"""The encoder: its layers, heads and layouts."""
