"""The terms of a loss, one file each: its figure, its config, its head."""
