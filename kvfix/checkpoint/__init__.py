"""Checkpoint folders: what must be in them, and the processor that belongs to them."""
