"""The rows of the table: each module yields what one of them compares."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from benchmarks.turns import Asked, Contest, Line

ROWS = (
    "capture",
    "segmentation",
    "kmeans",
    "propagation",
    "mcq",
    "training",
    "bootstrap",
    "growth",
    "tokens",
    "busy",
)


def row(name: str, asked: Asked) -> Iterator[Contest | Line]:
    """What a row compares; to be taken one after the other, as tools run only in between."""
    yield from import_module(f"benchmarks.rows.{name}").compared(asked)
