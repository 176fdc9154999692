"""Procedural scenes: how they are painted, and all that can be asked of them."""
