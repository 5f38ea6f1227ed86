"""A search over settings: its trials, their ledger and their report."""
