"""What is given to others beside the lake: one module per output format."""
