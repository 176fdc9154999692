"""What a repair would change and what it would cost, from a config alone."""
