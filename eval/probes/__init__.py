"""One probe for each task: features of a site -> a prediction -> a score, for one unit."""
