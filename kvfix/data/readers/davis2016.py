"""DAVIS-2016, split val: one object for each sequence, in masks of 0 and 255.

Layout and rules: davisvideochallenge/davis-matlab (``db_read_annot``). Its 20 sequences also come
with the archive of DAVIS-2017, in several objects: those are one object here, and 255 is void in
them. Which of both a sequence is, its first mask says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from kvfix.data.files import find_root, is_plain, read_labels, read_lines, read_list
from kvfix.data.pictures.read import opened
from kvfix.data.readers.davis import FRAMES, MASKS, Edition, is_2016
from kvfix.data.units import VOID, BadUnit
from kvfix.wording import shown

TREE = """\
DAVIS/                                  DIR is this folder or its parent
  ImageSets/480p/val.txt                a frame and its mask a line, as in the 2016 archive; or
  ImageSets/2016/val.txt                one sequence name a line, as in the 2017 archive
  JPEGImages/480p/<sequence>/00000.jpg  frames
  Annotations/480p/<sequence>/00000.png masks: 0 ground, 255 object; or 1..n objects, 255 void
"""
LISTS = ("ImageSets/480p/val.txt", "ImageSets/2016/val.txt")


def sequences(root: Path) -> tuple[Path, tuple[str, ...]]:
    """The list of a DAVIS folder, and the names of the sequences in it."""
    frame_list, name_list = (root / name for name in LISTS)
    if frame_list.is_file():
        return frame_list, _sequences_of_frames(frame_list)
    if name_list.is_file():
        return name_list, read_list(name_list)
    raise FileNotFoundError(
        f"{root}: expected {' or '.join(LISTS)}, found neither. `kvfix data list` shows the tree"
    )


def _sequences_of_frames(path: Path) -> tuple[str, ...]:
    """Sequences in lines such as `/JPEGImages/480p/goat/00000.jpg /Annotations/.../00000.png`."""
    names: dict[str, None] = {}
    for number, line in enumerate(read_lines(path, "a frame a line"), start=1):
        if not line.strip():
            continue
        name = PurePosixPath(line.split()[0]).parent.name
        if not is_plain(name):
            raise ValueError(
                f"{path}:{number}: expected a frame such as /{FRAMES}/goat/00000.jpg, "
                f"found {shown(line)}"
            )
        names[name] = None
    if not names:
        raise ValueError(f"{path}: expected a frame a line, found an empty list")
    return tuple(names)


def object_reader(first: Path) -> Callable[[Path], np.ndarray]:
    """What reads the masks of a sequence as 0 and 1, by the first of them."""
    return partial(_read_object, void=not is_2016(_labels(first)))


def _read_object(path: Path, *, void: bool) -> np.ndarray:
    labels_HW = _labels(path)
    is_object_HW = labels_HW > 0
    if void:
        is_object_HW &= labels_HW != VOID
    return is_object_HW.astype(np.uint8)


def _labels(path: Path) -> np.ndarray:
    """A mask's values as they are stored; a mask of single bits holds 0 and 1."""
    with opened(path, expected="a mask") as image:
        if image.mode == "1":
            return np.array(image).astype(np.uint8)
    return read_labels(path)


def read_result(path: Path) -> np.ndarray:
    """A result for one object as 0 and 1, by the official rule (``db_read_result``).

    Values other than 0 and 255, or 0 and 1, are a soft mask, cut at half of its maximum. Labels of
    several objects in a palette are no soft mask, and are a BadUnit.
    """
    labels_HW = _labels(path)
    found = set(np.unique(labels_HW).tolist())
    if found <= {0, 1} or found <= {0, VOID}:
        return (labels_HW > 0).astype(np.uint8)
    with opened(path, expected="a mask") as image:
        if image.mode == "P":
            raise BadUnit(
                f"{path}: expected one object, 0 and 255 or 0 and 1, found labels "
                f"{', '.join(map(str, sorted(found)[:5]))}; a sequence of DAVIS-2016 has one"
            )
    return (labels_HW > labels_HW.max() / 2).astype(np.uint8)


def _root(folder: Path) -> Path:
    root = find_root(folder, name="DAVIS", holds=(FRAMES, MASKS))
    sequences(root)
    return root


DAVIS_2016 = Edition("davis2016", _root, sequences, object_reader, lambda root, names: None)
