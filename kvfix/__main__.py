"""`python -m kvfix` is the `kvfix` command."""

from kvfix.cli import main

if __name__ == "__main__":
    main()
