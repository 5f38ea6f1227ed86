"""Every setting, typed, and how settings are read."""
