"""prorata's engine: the outside world becomes frames, frames become shares, shares become a ledger."""
