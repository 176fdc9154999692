"""Predictions that were made elsewhere, scored by the benchmarks' own rules."""
