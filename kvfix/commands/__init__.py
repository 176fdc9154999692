"""What the commands do, from end to end; `kvfix.cli` only reads the command line."""
