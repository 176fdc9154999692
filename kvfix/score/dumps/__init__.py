"""The files in which other tools leave multiple-choice predictions."""
