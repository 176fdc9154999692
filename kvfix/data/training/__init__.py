"""Training data as people have it, read into conversations about photos."""
