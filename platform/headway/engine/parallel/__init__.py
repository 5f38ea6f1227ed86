"""Divide a model or a batch among workers."""
