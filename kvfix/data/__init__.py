"""Where units come from: procedural scenes, a reader for each benchmark, and training data."""
