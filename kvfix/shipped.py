"""Where the checkpoints and the recipes lie that travel with kvfix."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEFAULT_FAMILY = "llava_onevision"


def presets_dir() -> Path:
    """The folder of DeepSpeed's configs, `zero<name>.json`."""
    return _recipes() / "deepspeed"


def default_out(recipe: str) -> Path:
    """Where a recipe writes that was not told: in the checkout, or below the working folder."""
    root = _recipes().parent
    return (root if (root / "pyproject.toml").exists() else Path()) / "checkpoints" / recipe


def _recipes() -> Path:
    return Path(str(files("kvfix.recipes")))


def shipped_families() -> tuple[str, ...]:
    """The families whose nano MLM travels with this installation, by name."""
    root = Path(str(files("kvfix.nano")))
    return tuple(sorted(p.parent.name for p in root.glob("*/config.json")))


def nano_dir(family: str = DEFAULT_FAMILY) -> Path:
    """The folder of a shipped nano MLM; a FileNotFoundError where there is none of that family."""
    folder = Path(str(files("kvfix.nano"))) / family
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}: expected the shipped nano checkpoint {family!r}, found none; reinstall "
            f"kvfix, or train it from a checkout: python recipes/nano/train_nano.py family={family}"
        )
    return folder
