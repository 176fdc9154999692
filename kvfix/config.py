"""A frozen dataclass, a YAML file that maps 1:1 onto it, and `key=value` overrides.

A field may be a dataclass itself: a mapping in YAML, `outer.inner=value` as an override.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kvfix.bounds import FieldError, check_number
from kvfix.wording import cause, shown

C = TypeVar("C")


def load_config(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file into the dataclass `cls`, whose fields all have defaults; then `key=value`.

    A key that is unknown, and a value that is of another type than the default, out of its bounds
    (`kvfix.bounds`) or refused by the dataclass, is a ValueError.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values.update(_read_yaml(Path(path)))
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"override: expected key=value, found {shown(text)}")
        _put(values, key.strip(), _parsed(value, f"override {shown(text)}"))
    return _filled(cls(), values, "")


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; what the file says beside it stays."""
    *outer, last = key.split(".")
    for name in outer:
        within = values.get(name)
        values[name] = values = dict(within) if isinstance(within, dict) else {}
    values[last] = value


def _filled(default: C, values: dict[str, Any], prefix: str) -> C:
    known = {f.name: getattr(default, f.name) for f in fields(default)}  # type: ignore[arg-type]
    given = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in known:
            raise ValueError(f"config key {shown(key)} is unknown; known keys: {', '.join(known)}")
        given[name] = _like(value, known[name], key)
    try:
        for name, value in given.items():  # before the dataclass compares it with anything
            check_number(default, name, value)
        return replace(default, **given)  # type: ignore[type-var]
    except FieldError as error:
        raise ValueError(f"config key {f'{prefix}{error.name}'!r}: {error.text}") from None
    except ValueError as error:
        raise ValueError(f"config {prefix.rstrip('.') or 'values'}: {error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    read = _parsed(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(read, dict | None):
        raise ValueError(f"{path}: expected lines of `key: value`, found a {type(read).__name__}")
    return read or {}


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"{where}: expected YAML, found brackets without end") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        raise ValueError(f"{where}: expected YAML, found {cause(error)}") from None


def _like(value: Any, default: Any, key: str) -> Any:
    """Convert harmless spellings (1 for 1.0 or "1", 1e-3 as text, list for tuple); no others."""
    if is_dataclass(default) and isinstance(value, dict):
        return _filled(default, value, f"{key}.")
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # nan and inf in any spelling: `check_number` refuses them
        except (ValueError, OverflowError):
            pass
    if isinstance(default, str) and (value is None or type(value) is int):
        return "" if value is None else str(value)  # `zero=`, `zero=2`
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(_like(item, default[0], key) if default else item for item in value)
    expected, found = type(default).__name__, type(value).__name__
    raise ValueError(f"config key {key!r}: expected {expected}, found {found} ({shown(value)})")


def dump_config(config: Any) -> str:
    """The resolved config as YAML text, in field order."""
    return yaml.safe_dump(asdict(config), sort_keys=False)
