"""Settings of what makes models smaller and faster."""
