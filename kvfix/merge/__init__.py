"""A model and its adapter as one checkpoint, proved on disk."""
