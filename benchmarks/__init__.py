"""What kvfix costs, beside other ways and other tools; `python -m benchmarks` prints the table."""
