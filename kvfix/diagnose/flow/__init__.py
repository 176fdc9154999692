"""Where visual information is gained and lost, from the vision tower to the last values."""
