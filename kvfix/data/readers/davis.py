"""DAVIS, semi-supervised, split val: one clip for each sequence, whose first mask is given.

Layout and rules: davisvideochallenge/davis2017-evaluation. Palette indices of the mode-P masks are
the object labels. DAVIS-2016 is the same with one object (see `kvfix.data.readers.davis2016`): its
masks hold 0 and 255. Frames and masks are opened on access, one at a time. Where only every n-th
frame has a mask (YouTube-VOS does so), the clip is made of the frames that have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from kvfix.data.files import (
    digest,
    faults,
    find_root,
    listed,
    mask_size,
    read_labels,
    read_list,
    read_photo,
)
from kvfix.data.pictures.read import read_header
from kvfix.data.units import VOID, BadUnit, Clip, UnitSet

TREE = """\
DAVIS/                                  DIR is this folder or its parent
  ImageSets/2017/val.txt                one sequence name a line
  JPEGImages/480p/<sequence>/00000.jpg  frames
  Annotations/480p/<sequence>/00000.png masks, mode P: 0 ground, 1..n objects, 255 void
"""
_LIST = "ImageSets/2017/val.txt"
FRAMES, MASKS = "JPEGImages/480p", "Annotations/480p"
MIN_FRAMES = 3  # the first and the last do not count

T = TypeVar("T")


@dataclass(frozen=True)
class LazySequence(Sequence[T]):
    """Items that are read on every access, so that one at a time is in memory."""

    items: tuple[Any, ...]  # such as paths
    read: Callable[[Any], T]  # raises a `BadUnit` for what it cannot read

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> LazySequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | LazySequence[T]:
        if isinstance(index, slice):
            return replace(self, items=self.items[index])
        return self.read(self.items[index])


class Edition(NamedTuple):
    """What the editions of DAVIS do not share."""

    dataset: str  # its name in runs
    root: Callable[[Path], Path]  # finds the DAVIS folder from the folder that the user named
    sequences: Callable[[Path], tuple[Path, tuple[str, ...]]]  # a folder's list, and its names
    reader: Callable[[Path], Callable[[Path], np.ndarray]]  # from the first mask of a sequence
    refuse: Callable[[Path, tuple[str, ...]], None]  # stops at the masks of another edition

    def clips(self, folder: Path) -> UnitSet:
        """The clips of split val; reads the list, file sizes and masks, no photo."""
        root = self.root(folder)
        listing, names = self.sequences(root)
        self.refuse(root, names)
        masks = [p for n in names for p in listed(root / MASKS / n, ".png")]
        frames = [p for n in names for p in listed(root / FRAMES / n, ".jpg")]
        sha256 = digest(root, annotations=[listing, *masks], photos=frames)
        return UnitSet(
            "temporal_correspondence",
            self.dataset,
            "val",
            names,
            partial(_load, self, root, names),
            sha256,
            "sequence",
        )

    def problems(self, folder: Path) -> Iterator[str]:
        """Everything that is wrong with a DAVIS folder; decodes every frame and mask."""
        units = self.clips(folder)
        for i in range(len(units)):
            try:
                clip = units.load(i)
            except BadUnit as error:
                yield str(error)
                continue
            assert isinstance(clip, Clip)
            for files in (clip.frames, clip.masks):
                yield from faults(files.__getitem__, *range(len(files)))


def _root(folder: Path) -> Path:
    try:
        return find_root(folder, name="DAVIS", holds=(_LIST, FRAMES, MASKS))
    except FileNotFoundError:
        for root in (folder, folder / "DAVIS"):
            if (root / "ImageSets/480p").is_dir() and not (root / "ImageSets/2017").exists():
                raise FileNotFoundError(
                    f"{root}: expected DAVIS-2017 with {_LIST}, found the lists of DAVIS-2016 "
                    "(ImageSets/480p); read it as davis2016=DIR, or download the 2017 trainval "
                    "archive at 480p"
                ) from None
        raise


def _refuse_2016(root: Path, names: tuple[str, ...]) -> None:
    """Stop before anything is computed when the first readable mask is one of DAVIS-2016."""
    for name in names:
        for path in listed(root / MASKS / name, ".png")[:1]:
            try:
                labels_HW = read_labels(path)
            except BadUnit:
                continue  # reported for its own unit
            if is_2016(labels_HW):
                raise ValueError(_line_2016(path))
            return


def _reader_2017(first: Path) -> Callable[[Path], np.ndarray]:
    if is_2016(read_labels(first)):
        raise BadUnit(_line_2016(first))
    return read_labels


def is_2016(labels_HW: np.ndarray) -> bool:
    """0/255 and nothing else: an object drawn in the label that 2017 reserves for void."""
    present = np.bincount(labels_HW.ravel(), minlength=256) > 0
    return bool(present[VOID] and not present[1:VOID].any())


def _line_2016(path: Path) -> str:
    return (
        f"{path}: expected object labels 1..n (DAVIS-2017), found 0 and 255 only: a DAVIS-2016 "
        "mask, which would be read as all void; read the folder as davis2016=DIR, or use "
        "Annotations/480p of the 2017 trainval archive"
    )


def _load(edition: Edition, root: Path, names: tuple[str, ...], index: int) -> Clip:
    """Clip `index`: checks names, sizes and the first mask; frames decode on access."""
    name = names[index]
    pairs = _paired(root, name)
    first_frame, first_mask = pairs[0]
    headers = {mask: read_header(frame, expected="a frame") for frame, mask in pairs}
    size = headers[first_mask].size
    for frame, mask in pairs:
        header, found = headers[mask], mask_size(mask)
        strange = frame if header.size != size else mask if header.turn_of(found) is None else None
        if strange is not None:
            width, height = header.size if strange is frame else found
            raise BadUnit(
                f"{strange}: expected {size[0]} x {size[1]} pixels like {first_frame.name} of its "
                f"sequence, found {width} x {height}"
            )
    read = edition.reader(first_mask)
    if not read(first_mask).any():
        raise BadUnit(
            f"{first_mask}: expected at least one object to follow, found background only"
        )
    frames, masks = zip(*pairs, strict=True)

    def upright(mask: Path) -> np.ndarray:
        return headers[mask].mask(read(mask))

    return Clip(name, name, LazySequence(frames, read_photo), LazySequence(masks, upright))


def _paired(root: Path, name: str) -> list[tuple[Path, Path]]:
    """(frame, mask) files of a sequence, at the regular step at which masks come."""
    frames = {p.stem: p for p in listed(root / FRAMES / name, ".jpg")}
    masks = {p.stem: p for p in listed(root / MASKS / name, ".png")}
    for found, folder, kind in ((frames, FRAMES, "frames .jpg"), (masks, MASKS, "masks .png")):
        if not found:
            raise BadUnit(f"{root / folder / name}: expected {kind}, found none")
    alone = sorted(masks.keys() - frames.keys())
    if alone:
        where = root / FRAMES / name / f"{alone[0]}.jpg"
        raise BadUnit(f"{where}: expected a frame for every mask, found no such file")
    order = sorted(frames)
    at = [i for i, stem in enumerate(order) if stem in masks]
    step = min((b - a for a, b in pairwise(at)), default=1)
    missing = [stem for stem in order[::step] if stem not in masks]
    if missing:
        where = root / MASKS / name / f"{missing[0]}.png"
        every = "every frame" if step == 1 else f"every {step} frames"
        raise BadUnit(
            f"{where}: expected a mask for {every}, found no such file ({len(missing)} of "
            f"{len(order[::step])} masks missing)"
        )
    if len(masks) < MIN_FRAMES:
        raise BadUnit(
            f"{root / MASKS / name}: expected at least {MIN_FRAMES} masks (the first and the last "
            f"do not count), found {len(masks)}"
        )
    return [(frames[stem], masks[stem]) for stem in order[::step]]


DAVIS_2017 = Edition(
    "davis2017",
    _root,
    lambda root: (root / _LIST, read_list(root / _LIST)),
    _reader_2017,
    _refuse_2016,
)
