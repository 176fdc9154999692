"""A frozen dataclass, a YAML file that maps 1:1 onto it, and `key=value` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

C = TypeVar("C")


def load_config(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read `path` into the dataclass `cls`, then apply overrides such as `lr=1e-3`.

    Args:
        cls: a dataclass whose fields all have defaults.
        path: YAML file of `key: value` lines, or None for the defaults.
        overrides: `key=value` strings; values are read as YAML.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an unknown key, a malformed override, or a value of another type than the
            default.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values.update(_read_yaml(Path(path)))
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"override: expected key=value, found {text!r}")
        values[key.strip()] = yaml.safe_load(value)
    default = cls()
    known = {f.name: getattr(default, f.name) for f in fields(default)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"config key {key!r} is unknown; known keys: {', '.join(known)}")
        values[key] = _like(value, known[key], key)
    return cls(**values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, found {' '.join(str(error).split())}") from None
    if not isinstance(read, dict | None):
        raise ValueError(f"{path}: expected lines of `key: value`, found a {type(read).__name__}")
    return read or {}


def _like(value: Any, default: Any, key: str) -> Any:
    """Convert harmless spellings (1 for 1.0, 1e-3 as text, list for tuple); refuse the rest."""
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    expected, found = type(default).__name__, type(value).__name__
    raise ValueError(f"config key {key!r}: expected {expected}, found {found} ({value!r})")


def dump_config(config: Any) -> str:
    """The resolved config as YAML text, in field order."""
    return yaml.safe_dump(asdict(config), sort_keys=False)
