"""Pascal-5i on VOC2012 val: 1,000 five-shot episodes in each fold, drawn as HSNet draws them.

Protocol: juhongm999/hsnet (`data/pascal.py`, `test.py`). Fold i holds VOC classes 5i+1 to 5i+5. A
fold is a list of (image, class) entries, by image name, then class. Each fold starts a fresh NumPy
generator with seed 0. Episode k asks for entry k modulo the list's length; its supports are drawn
one after the other from the entries of its class, each draw being the head of a fresh permutation,
and drawn again only where they hit the query: one photo may support an episode twice. Photos go to
400 x 400 pixels (bilinear), masks too (nearest, as torch counts pixels); 255 stays void, other
classes become background.

The list. HSNet ships it (346, 451, 725 and 346 entries) and it cannot be derived exactly from the
VOC tree: its authors took over an older list that left out objects too small on a mask scaled down
32 times. With HSNet's `data/splits` copied to `VOC2012/splits`, kvfix reads it and draws HSNet's
very episodes. Without it, an entry is kept whose class fills at least 2 x 32 x 32 pixels, the rule
that PFENet states for that list; `kvfix data check` says where its counts differ.

Two choices are kvfix's own. A class with a single entry is left out, because no support is left
for it (HSNet would draw for ever). Folds take turns, so that a limit keeps all four.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kvfix.data.files import (
    digest,
    find_root,
    header_for,
    is_plain,
    read_labels,
    read_list,
    read_photo,
)
from kvfix.data.pictures.read import Header, read_picture
from kvfix.data.readers.episodes import (
    CLASSES,
    FOLDS,
    PER_FOLD,
    Draw,
    Entry,
    draw_episodes,
    usable,
)
from kvfix.data.units import VOID, BadUnit, Episode, Truths, UnitSet
from kvfix.wording import shown

TREE = """\
VOC2012/                                 DIR is this folder or its parent
  ImageSets/Segmentation/val.txt         one image name a line
  JPEGImages/2007_000033.jpg             photos
  SegmentationClassAug/2007_000033.png   masks, mode P or L: 0 ground, 1..20 classes, 255 void
  splits/pascal/val/fold0.txt .. fold3   optional: HSNet's lists (its data/splits folder), which
                                         make the episodes exactly HSNet's
"""
SIDE = 400  # pixels
SMALLEST = 2 * 32 * 32  # pixels of a class that make an entry
OFFICIAL_IMAGES = 1449  # names in VOC2012's val.txt
OFFICIAL_ENTRIES = (346, 451, 725, 346)  # in HSNet's lists, by fold
_LIST, _PHOTOS, _MASKS = "ImageSets/Segmentation/val.txt", "JPEGImages", "SegmentationClassAug"
_SPLITS = "splits/pascal/val"


class QueryTruth(NamedTuple):
    """What an episode's prediction is compared with."""

    query: str  # the photo's name
    label: int  # VOC class id, 1..20
    mask: np.ndarray  # uint8 (400, 400), 0 or 1, 255 void


def pascal_episodes(folder: Path) -> UnitSet:
    """The episodes of all four folds, in turn; reads masks for the lists, no photo."""
    root = _root(folder)
    by_fold = [draw_episodes(usable(e).kept, fold) for fold, e in enumerate(_lists(root))]
    draws = tuple(d for turn in zip(*filter(None, by_fold), strict=True) for d in turn)
    if not draws:
        raise ValueError(
            f"{root}: expected a class with at least 2 photos to draw episodes from, found none"
        )
    names = {n for d in draws for n in (d.query, *d.support)}
    lists = [root / _LIST, *(_split(root, fold) for fold in range(FOLDS))]
    sha256 = digest(
        root,
        annotations=[*lists, *(_mask(root, n) for n in names)],
        photos=[_photo(root, n) for n in names],
    )
    return UnitSet(
        "foreground_segmentation",
        "pascal5i",
        "val",
        tuple(d.id for d in draws),
        partial(_load, root, draws),
        sha256,
        "query image",
    )


def pascal_truths(folder: Path) -> Truths[QueryTruth]:
    """The query masks of the same episodes in the same order; raises as `pascal_episodes`."""
    units = pascal_episodes(folder)
    root = _root(folder)

    def load(index: int) -> QueryTruth:
        name, _, category = units.ids[index].split("-", 2)[2].rpartition("-")
        label = CLASSES.index(category) + 1
        return QueryTruth(name, label, _mask_of(root, name, label))

    return Truths(units, load)


def pascal_problems(folder: Path) -> Iterator[str]:
    """Everything wrong with a VOC2012 folder; decodes every listed photo and mask."""
    root = _root(folder)
    given = _given_lists(root)
    wanted: dict[str, set[int]] = {name: set() for name in read_list(root / _LIST)}
    if given is not None:
        wanted = {}
        for name, label in (entry for entries in given for entry in entries):
            wanted.setdefault(name, set()).add(label)
    present: set[int] = set()
    for name in sorted(wanted):
        try:
            labels = _areas(_mask(root, name)).keys()
            present |= labels
            for label in sorted(wanted[name] - labels):
                yield _lacks(_mask(root, name), label)
            header_for(_photo(root, name), _mask(root, name))
            read_photo(_photo(root, name))
        except BadUnit as error:
            yield str(error)
    if not present:
        yield f"{root / _MASKS}: expected VOC classes 1 to {len(CLASSES)}, found none in any mask"


def pascal_notes(folder: Path) -> Iterator[str]:
    """What each fold is drawn from, what is left out, and whether the lists are HSNet's."""
    root = _root(folder)
    given = _given_lists(root)
    rule = "HSNet's lists" if given is not None else f"an area of {SMALLEST} pixels or more"
    lists = _lists(root) if given is None else given
    for fold, entries in enumerate(lists):
        alone, kept = usable(entries)
        classes = sorted({e.label for e in kept})
        names = ", ".join(CLASSES[label - 1] for label in classes) or "none, so no episodes"
        yield f"fold {fold}: {len(kept)} entries (photo and class) by {rule}: {names}"
        for name, label in alone:
            yield (
                f"fold {fold}: {CLASSES[label - 1]} is left out, because {name} is its only photo "
                "and no support would remain"
            )
    counts = tuple(len(entries) for entries in lists)
    if counts != OFFICIAL_ENTRIES:
        yield (
            f"HSNet's lists have {', '.join(map(str, OFFICIAL_ENTRIES))} entries: results on these "
            "episodes compare with each other, not with published ones"
        )
    if given is None and len(read_list(root / _LIST)) == OFFICIAL_IMAGES:
        yield f"for HSNet's very episodes, copy its data/splits to {root / 'splits'}"


def _root(folder: Path) -> Path:
    return find_root(folder, name="VOC2012", holds=(_LIST, _PHOTOS, _MASKS))


def _photo(root: Path, name: str) -> Path:
    return root / _PHOTOS / f"{name}.jpg"


def _mask(root: Path, name: str) -> Path:
    return root / _MASKS / f"{name}.png"


def _split(root: Path, fold: int) -> Path:
    return root / _SPLITS / f"fold{fold}.txt"


def _lists(root: Path) -> list[list[Entry]]:
    """The entries of each fold: HSNet's lists where they lie in the tree, else by area."""
    given = _given_lists(root)
    if given is not None:
        return given
    return _derived({name: _areas(_mask(root, name)) for name in read_list(root / _LIST)})


def _derived(areas: dict[str, dict[int, int]]) -> list[list[Entry]]:
    """Entries by fold, from the pixels that each class fills in each photo."""
    lists: list[list[Entry]] = [[] for _ in range(FOLDS)]
    for name in sorted(areas):
        for label in sorted(areas[name]):
            if areas[name][label] >= SMALLEST:
                lists[(label - 1) // PER_FOLD].append(Entry(name, label))
    return lists


def _given_lists(root: Path) -> list[list[Entry]] | None:
    """HSNet's own lists, of lines like `2007_000033__01`; None where the tree has none of them."""
    paths = [_split(root, fold) for fold in range(FOLDS)]
    missing = [p for p in paths if not p.is_file()]
    if len(missing) == FOLDS:
        return None
    if missing:
        raise FileNotFoundError(f"{missing[0]}: expected the lists of all 4 folds, found no file")
    lists = []
    for fold, path in enumerate(paths):
        entries = []
        for line in read_list(path):
            name, _, number = line.rpartition("__")
            label = int(number) if number.isascii() and number.isdigit() else 0
            if not is_plain(name) or not 0 <= (label - 1) // PER_FOLD == fold:
                first = fold * PER_FOLD + 1
                raise ValueError(
                    f"{path}: expected lines like 2007_000033__01 of classes {first} to "
                    f"{first + PER_FOLD - 1}, found {shown(line)}"
                )
            entries.append(Entry(name, label))
        lists.append(entries)
    return lists


def _areas(path: Path) -> dict[int, int]:
    return _pixels(_read_mask(path))


def _pixels(labels_HW: np.ndarray) -> dict[int, int]:
    counts = np.bincount(labels_HW.ravel(), minlength=VOID + 1)
    return {v: int(counts[v]) for v in range(1, len(CLASSES) + 1) if counts[v]}


def _read_mask(path: Path) -> np.ndarray:
    labels_HW = read_labels(path)
    present = np.flatnonzero(np.bincount(labels_HW.ravel(), minlength=VOID + 1))
    strange = present[(present > len(CLASSES)) & (present < VOID)]
    if len(strange):
        raise BadUnit(
            f"{path}: expected labels 0 to {len(CLASSES)} and {VOID}, found {strange[0]}; a mask "
            "saved through its colours lost them"
        )
    if VOID in present and not _pixels(labels_HW):
        raise BadUnit(
            f"{path}: expected VOC class labels, found 0 and 255 only: a binary mask, which would "
            "be read as void"
        )
    return labels_HW


def _lacks(path: Path, label: int) -> str:
    return f"{path}: expected class {label} ({CLASSES[label - 1]}), found no pixel of it"


def _load(root: Path, draws: tuple[Draw, ...], index: int) -> Episode:
    draw = draws[index]
    read = {n: _example(root, n, draw.label) for n in {draw.query, *draw.support}}
    return Episode(
        draw.id,
        draw.query,
        tuple(read[n][0] for n in draw.support),
        tuple(read[n][1] for n in draw.support),
        *read[draw.query],
        CLASSES[draw.label - 1],
    )


def _example(root: Path, name: str, label: int) -> tuple[Image.Image, np.ndarray]:
    """Photo and mask of one class at 400 x 400."""
    header_for(_photo(root, name), _mask(root, name))
    photo, header = read_picture(_photo(root, name))
    mask_HW = _mask_of(root, name, label, header)
    return photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR), mask_HW


def _mask_of(root: Path, name: str, label: int, photo: Header | None = None) -> np.ndarray:
    """Mask of one class at 400 x 400; turned with its photo where that is given."""
    path = _mask(root, name)
    labels_HW = _read_mask(path) if photo is None else photo.mask(_read_mask(path))
    if label not in labels_HW:
        raise BadUnit(_lacks(path, label))
    rows, columns = (_nearest(n) for n in labels_HW.shape)
    small_HW = labels_HW[np.ix_(rows, columns)]
    return np.where(small_HW == VOID, VOID, small_HW == label).astype(np.uint8)


def _nearest(n: int) -> np.ndarray:
    """Source index of each of 400 pixels, as torch's `interpolate(mode="nearest")` picks them."""
    scale = np.float32(n) / np.float32(SIDE)
    return np.minimum(np.floor(np.arange(SIDE, dtype=np.float32) * scale).astype(int), n - 1)
