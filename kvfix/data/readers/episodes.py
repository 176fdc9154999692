"""Few-shot episodes on Pascal VOC as HSNet draws them (see `pascal.py`); reads no file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
FOLDS, PER_FOLD = 4, 5
EPISODES = 1000  # in each fold
SHOTS = 5


class Entry(NamedTuple):
    """A photo that shows a class, as HSNet's lists have it."""

    name: str
    label: int  # 1..20


class Draw(NamedTuple):
    """An episode by names."""

    fold: int
    number: int
    query: str
    support: tuple[str, ...]
    label: int

    @property
    def id(self) -> str:
        # Such as fold0-0007-2007_000762-bottle.
        return f"fold{self.fold}-{self.number:04d}-{self.query}-{CLASSES[self.label - 1]}"


class Usable(NamedTuple):
    """A fold's entries with and without a photo to support them."""

    alone: list[Entry]  # the only photo of their class
    kept: list[Entry]


def usable(entries: list[Entry]) -> Usable:
    """Split off the classes that have a single entry."""
    labels = [e.label for e in entries]
    alone = [e for e in entries if labels.count(e.label) == 1]
    return Usable(alone, [e for e in entries if e not in alone])


def draw_episodes(
    entries: Sequence[Entry], fold: int, *, episodes: int = EPISODES, shots: int = SHOTS
) -> list[Draw]:
    """Episodes of one fold by HSNet's rule, seed 0, from its list of two or more photos a class."""
    rng = np.random.RandomState(0)  # the legacy generator that np.random.seed and choice use
    photos: dict[int, list[str]] = {}
    for entry in entries:
        photos.setdefault(entry.label, []).append(entry.name)
    draws = []
    for number in range(episodes if entries else 0):
        query, label = entries[number % len(entries)]
        support: list[str] = []
        while len(support) < shots:
            name = photos[label][rng.choice(len(photos[label]), 1, replace=False)[0]]
            if name != query:
                support.append(name)
        draws.append(Draw(fold, number, query, tuple(support), label))
    return draws
