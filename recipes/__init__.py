"""Trainings that read as a page each; installed as `kvfix.recipes`."""
