"""Which image keys depend on no image, and what they do."""
