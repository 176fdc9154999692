"""A finished run in the forms of other tools."""
