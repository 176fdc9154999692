"""Pictures and masks: read, turned upright, brought to 8-bit RGB."""
