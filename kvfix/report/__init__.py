"""A run told to a person: figures, overlays, the terminal table, report.html and report.md."""
