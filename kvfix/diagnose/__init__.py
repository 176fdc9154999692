"""Diagnoses: each turns scored features into findings, sentences with a number and its interval."""
