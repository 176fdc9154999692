"""Two runs or more, compared unit by unit."""
