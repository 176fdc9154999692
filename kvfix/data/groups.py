"""Items by what they share, and one of each group in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by their key, keys and items in order of appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def in_turn(groups: Iterable[Sequence[T]]) -> tuple[T, ...]:
    """One item of each group after the other, so that a limit keeps all groups."""
    return tuple(item for turn in zip_longest(*groups) for item in turn if item is not None)
