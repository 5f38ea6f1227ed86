"""The devices that a machine computes on, and how fast they are."""
