"""One module per source of billing: its files or answers become BILLING."""
