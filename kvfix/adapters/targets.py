"""Which modules an adapter changes: its patterns, matched here and never in PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kvfix.adapters.naming import TODAY, Naming
from kvfix.adapters.patterns import Pattern, is_name
from kvfix.wording import shown

_ALL_LINEAR = "all-linear"  # PEFT's own word
_LAYER = r"[^.]*"


def resolve(
    settings: dict[str, Any], modules: Sequence[str], naming: Naming, *, where: Path
) -> dict[str, Any]:
    """The settings with today's names of the modules in place of patterns of the adapter's own
    names.

    A pattern that matches nothing, or takes too long, is a ValueError; `where` is the file it
    names.
    """
    now_of = {naming.then(name): name for name in modules}
    names = _Names(now_of, old=naming is not TODAY, where=where)
    given = dict(settings)
    if given.get("target_modules") and given["target_modules"] != _ALL_LINEAR:
        given |= names.targets(given)
    excluded = given.get("exclude_modules")
    if excluded and (isinstance(excluded, str) or naming is not TODAY):
        given["exclude_modules"] = names.found(excluded, "exclude_modules") or None
    for pattern in ("rank_pattern", "alpha_pattern"):
        if given.get(pattern):
            given[pattern] = names.by_name(given[pattern], pattern)
    if given.get("modules_to_save"):
        given["modules_to_save"] = [
            now for name in given["modules_to_save"] for now in names.whole(name)
        ]
    tokens = given.get("trainable_token_indices")
    if isinstance(tokens, dict):
        given["trainable_token_indices"] = {
            now: ids for name, ids in tokens.items() for now in names.whole(name)
        }
    return given


class _Names:
    def __init__(self, now_of: dict[str, str], *, old: bool, where: Path):
        self._now_of, self._old, self._where = now_of, old, where

    def found(self, patterns: str | list[str], what: str) -> list[str]:
        """Today's names of the modules that a regex, or one of several endings, matches."""
        return [self._now_of[name] for name in self._then(patterns, what)]

    def targets(self, settings: dict[str, Any]) -> dict[str, Any]:
        """`target_modules`, and what narrows a list of them."""
        asked = settings["target_modules"]
        then = self._then(asked, "target_modules")
        if not then:
            raise ValueError(
                f"{self._where}: expected target_modules that the model has, found {shown(asked)}; "
                "was the adapter trained on another kind of model?"
            )
        if isinstance(asked, list) and not self._old:
            return {}
        chosen, layers = then, settings.get("layers_to_transform")
        if isinstance(asked, list) and layers not in (None, []):
            # As PEFT does it: a module that is named in full is not asked for its layer.
            wanted = {layers} if isinstance(layers, int) else set(layers)
            marks = _listed(settings.get("layers_pattern") or [])
            chosen = [x for x in then if x in asked or _layer(x, marks) in wanted]
            settings = settings | {"layers_to_transform": None, "layers_pattern": None}
        narrowed: dict[str, Any] = {
            name: settings[name]
            for name in ("layers_to_transform", "layers_pattern")
            if name in settings
        }
        return {"target_modules": [self._now_of[name] for name in chosen], **narrowed}

    def by_name(self, values: dict[str, Any], what: str) -> dict[str, Any]:
        """Values by pattern -> values by today's names; the first pattern that fits counts."""
        if not self._old and all(map(is_name, values)):
            return values
        left = dict(self._now_of)
        chosen: dict[Any, list[str]] = {}
        for pattern, value in values.items():
            # PEFT's reading: the pattern is the end of a name, from a dot on.
            for then in self._matching(rf"(?:.*\.)?(?:{pattern})", left, what):
                chosen.setdefault(value, []).append(left.pop(then))
        return {"|".join(map(re.escape, names)): value for value, names in chosen.items()}

    def whole(self, name: str) -> list[str]:
        """Today's names of the modules that an old name with dots in it is the end of."""
        if not self._old or "." not in name:
            return [name]
        return self.found([name], name) or [name]

    def _then(self, patterns: str | list[str], what: str) -> list[str]:
        if isinstance(patterns, str):
            return self._matching(patterns, self._now_of, what)
        ends = tuple(f".{name}" for name in patterns)
        return [name for name in self._now_of if name in patterns or name.endswith(ends)]

    def _matching(self, pattern: str, names: Iterable[str], what: str) -> list[str]:
        return Pattern(pattern, what=f"{self._where}: {what}").matching(list(names))


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _layer(name: str, marks: list[str]) -> int | None:
    """A module's layer: the first number behind a name, or behind one of `marks`."""
    for mark in marks or [_LAYER]:
        inner = mark if mark == _LAYER else re.escape(mark)
        if found := re.match(rf"(?:^|.*?\.){inner}\.(\d+)\.", name):
            return int(found[1])
    return None
