"""A training from its config to a folder with an adapter, and all that keeps it whole."""
