"""Encoders cut down to some of their parts."""
