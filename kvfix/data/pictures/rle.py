"""COCO's run-length masks, checked before they are decoded.

Why not `pycocotools.mask.decode`: up to 2.0.11 it takes the runs on trust, and where they end
before the mask does, it hands back whatever was in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def run_lengths(counts: str | Sequence[int]) -> list[int]:
    """Lengths of the runs, background first, column by column, or a ValueError.

    They come as a plain list, or as COCO's compressed text: each character holds 5 bits, from `0`
    on, and each run from the fourth on is the difference to the one two before.
    """
    if not isinstance(counts, str):
        if not all(type(n) is int for n in counts):
            raise ValueError("expected whole numbers as run lengths, found others")
        runs = list(counts)
    else:
        runs = _unpacked(counts)
    if any(n < 0 for n in runs):
        raise ValueError(f"expected run lengths of 0 or more, found {min(runs)}")
    return runs


def _unpacked(counts: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for i, character in enumerate(counts):
        five = ord(character) - 48
        if not 0 <= five < 64 or shift > 60:
            raise ValueError(f"expected COCO's run-length text, found {character!r} at {i}")
        value |= (five & 31) << shift
        shift += 5
        if five & 32:  # more characters of this number follow
            continue
        if five & 16:  # the sign
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("expected COCO's run-length text, found one that is cut off")
    return runs


def check_rle(size: tuple[int, int], counts: str | Sequence[int]) -> list[int]:
    """The run lengths of a mask, which must fill `size` (height, width), or a ValueError."""
    runs = run_lengths(counts)
    if sum(runs) != size[0] * size[1]:
        raise ValueError(
            f"expected runs of {size[0]} x {size[1]} = {size[0] * size[1]} pixels, found "
            f"{sum(runs)}"
        )
    return runs


def decode_rle(size: tuple[int, int], counts: str | Sequence[int]) -> np.ndarray:
    """A mask, uint8 (height, width), 0 or 1. Compare `size` with the photo's first: memory grows
    with it.
    """
    runs = check_rle(size, counts)
    labels = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(labels, runs).reshape(size[1], size[0]).T.copy()
