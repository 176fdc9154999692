"""A bare checkout as an installation: what pyproject.toml installs inside `kvfix` lies beside it.

Without this, a Python that has a checkout on its path would know no `kvfix.eval`, or take that of
another installation.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

HERE = Path(__file__).resolve().parent
# As pyproject.toml's package-dir has it.
BESIDE = {"kvfix.eval": "eval", "kvfix.nano": "checkpoints/nano", "kvfix.recipes": "recipes"}


class Beside:
    """Finds these packages of a checkout."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Where such a package lies; None for every other module."""
        if name not in BESIDE:
            return None
        return spec_from_file_location(name, HERE.parent / BESIDE[name] / "__init__.py")


def know_what_lies_beside() -> None:
    """Find the packages above, before any other finder does; nothing to do in a wheel."""
    if not (HERE / "eval").is_dir():
        sys.meta_path.insert(0, Beside)
