"""Search spaces, and the values that the next trial gets."""
