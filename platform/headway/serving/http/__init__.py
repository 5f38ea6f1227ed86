"""What clients talk to: the gateway, its operations and its page."""
