"""How fast prorata is, and what it is measured against: `python -m bench` (see README.md)."""
