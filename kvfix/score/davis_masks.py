"""Masks of a video's frames as tools write them: a label map a frame, or a folder for each object.

``<sequence>/<frame>.png`` holds labels as pixels; ``<sequence>/<object>/<frame>.png`` holds one
object, 0 and 1 or 0 and 255, in a folder that is named by its label (SAM 2's
``vos_inference.py --per_obj_png_file``: ``001``, ``002``, ...). Where masks of two objects overlap
the lower label has the pixels, as when SAM 2 joins them (``put_per_obj_mask``).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvfix.data.files import listed, read_labels
from kvfix.data.units import VOID, BadUnit


class Masks(NamedTuple):
    """The masks of a sequence: file names of all frames in order, and, where each object has masks
    of its own, a folder for each label.
    """

    folder: Path
    frames: tuple[str, ...]
    objects: dict[int, Path]

    def files(self, frames: tuple[str, ...]) -> list[Path]:
        """The files of some frames."""
        return [f / name for f in (self.objects.values() or (self.folder,)) for name in frames]


def masks_of(folder: Path) -> Masks | None:
    """How a sequence's masks lie in its folder; None if there are none."""
    if flat := listed(folder, ".png"):
        return Masks(folder, tuple(p.name for p in flat), {})
    if not folder.is_dir():
        return None
    objects: dict[int, Path] = {}
    frames: set[str] = set()
    for below in sorted(p for p in folder.iterdir() if p.is_dir()):
        if not (files := listed(below, ".png")):
            continue
        label = int(below.name) if below.name.isascii() and below.name.isdigit() else 0
        if not 0 < label < VOID or label in objects:
            raise ValueError(
                f"{below}: expected masks <sequence>/<frame>.png, or <sequence>/<object>/"
                "<frame>.png with objects 001, 002, ... by their labels, found this folder"
            )
        objects[label] = below
        frames.update(p.name for p in files)
    return Masks(folder, tuple(sorted(frames)), objects) if objects else None


def read_masks(masks: Masks, frame: str) -> np.ndarray:
    """The labels of a frame, uint8 (height, width), or a BadUnit."""
    if not masks.objects:
        return read_labels(masks.folder / frame)
    joined_HW: np.ndarray | None = None
    for label in sorted(masks.objects, reverse=True):
        path = masks.objects[label] / frame
        found_HW = read_labels(path)
        strange = set(np.unique(found_HW).tolist()) - {0, 1, label, VOID}
        if strange:
            raise BadUnit(
                f"{path}: expected the mask of one object, 0 and 1 or 0 and 255, found "
                f"{min(strange)}"
            )
        if joined_HW is None:
            joined_HW = np.zeros_like(found_HW)
        if found_HW.shape != joined_HW.shape:
            raise BadUnit(
                f"{path}: expected {joined_HW.shape[1]} x {joined_HW.shape[0]} pixels like the "
                f"other objects' masks, found {found_HW.shape[1]} x {found_HW.shape[0]}"
            )
        joined_HW[found_HW > 0] = label
    assert joined_HW is not None
    return joined_HW
