"""One model or one batch, divided among workers."""
