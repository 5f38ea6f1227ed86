"""What the machine computes on, and how fast it can."""
