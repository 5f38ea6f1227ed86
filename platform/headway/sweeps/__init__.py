"""Searching settings: trials, their ledger and their report."""
