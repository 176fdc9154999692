"""Where the checkpoints lie that travel with kvfix."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEFAULT_FAMILY = "llava_onevision"


def shipped_families() -> tuple[str, ...]:
    """The families whose nano MLM travels with this installation, by name."""
    root = Path(str(files("kvfix.nano")))
    return tuple(sorted(p.parent.name for p in root.glob("*/config.json")))


def nano_dir(family: str = DEFAULT_FAMILY) -> Path:
    """The folder of a shipped nano MLM.

    Raises:
        FileNotFoundError: this installation has no nano of that family.
    """
    folder = Path(str(files("kvfix.nano"))) / family
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}: expected the shipped nano checkpoint {family!r}, found none; reinstall "
            f"kvfix, or train it from a checkout: python recipes/nano/train_nano.py family={family}"
        )
    return folder
