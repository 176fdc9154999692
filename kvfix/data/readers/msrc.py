"""MSRC co-segmentation groups: each folder holds photos that share one object class.

Layout: the tree that ShirAmir/dino-vit-features and its predecessors use. The ground truth is white
on black with soft edges: a pixel is foreground above 127 of 255. Photo and mask are matched by name
without suffix, because copies of the data mix BMP, JPEG and PNG.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from kvfix.data.files import digest, find_root, header_for, read_photo
from kvfix.data.pictures.read import opened, read_picture
from kvfix.data.units import BadUnit, Group, Truths, UnitSet

TREE = """\
MSRC/                                DIR is this folder or its parent
  <group>/5_10_s.bmp                 photos: .bmp, .jpg or .png
  <group>/GroundTruth/5_10_s.bmp     masks: white object on black, soft edges
"""
_TRUTH = "GroundTruth"
_SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png")
THRESHOLD = 127  # a mask's brightness above it is foreground
MIN_IMAGES = 2  # fewer have nothing in common


def msrc_groups(folder: Path) -> UnitSet:
    """The groups of an MSRC folder by name; reads masks for the digest, no photo."""
    root = _root(folder)
    names = _groups(root)
    photos = [p for n in names for p in _images(root / n)]
    masks = [p for n in names for p in _images(root / n / _TRUTH)]
    return UnitSet(
        "cosegmentation",
        "msrc",
        "all",
        names,
        partial(_load, root, names),
        digest(root, annotations=masks, photos=photos),
        "group",
    )


def msrc_truths(folder: Path) -> Truths[dict[str, np.ndarray]]:
    """Each group's masks by image name (without suffix), uint8 0 or 1; raises as `msrc_groups`."""
    root = _root(folder)
    names = _groups(root)

    def load(index: int) -> dict[str, np.ndarray]:
        pairs = _paired(root / names[index])
        return {truth.stem: _read_truth(truth, photo) for photo, truth in pairs}

    return Truths(msrc_groups(folder), load)


def msrc_problems(folder: Path) -> Iterator[str]:
    """Everything wrong with an MSRC folder; decodes every photo and mask."""
    root = _root(folder)
    names = _groups(root)
    for child in sorted(root.iterdir()):
        if child.name not in names and child.is_dir() and _images(child):
            yield f"{child}: expected the group's masks in {_TRUTH}, found no such folder"
    for name in names:
        try:
            pairs = _paired(root / name)
        except BadUnit as error:
            yield str(error)
            continue
        for photo, truth in pairs:
            try:
                read_photo(photo)
                mask_HW = _read_truth(truth, photo)
            except BadUnit as error:
                yield str(error)
                continue
            if not mask_HW.any():
                yield f"{truth}: expected the group's object, found background only"


def _root(folder: Path) -> Path:
    root = find_root(folder, name="MSRC", holds=())
    if (folder / "MSRC").is_dir():
        root = folder / "MSRC"
    if (root / _TRUTH).is_dir():
        raise FileNotFoundError(
            f"{root}: expected the folder of all groups, found one group; pass {root.parent}"
        )
    return root


def _groups(root: Path) -> tuple[str, ...]:
    names = sorted(
        p.name for p in root.iterdir() if not p.name.startswith(".") and (p / _TRUTH).is_dir()
    )
    if not names:
        raise FileNotFoundError(
            f"{root}: expected groups <group>/{_TRUTH}, found none. `kvfix data list` shows the "
            "tree"
        )
    return tuple(names)


def _images(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    found = (p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    return tuple(sorted(p for p in found if not p.name.startswith(".")))


def _paired(group: Path) -> list[tuple[Path, Path]]:
    photos, masks = _by_stem(group), _by_stem(group / _TRUTH)
    for stem in sorted(photos.keys() ^ masks.keys()):
        if stem in photos:
            raise BadUnit(f"{group / _TRUTH / stem}.*: expected a mask, found no such file")
        raise BadUnit(f"{group / stem}.*: expected a photo for the mask, found no such file")
    if len(photos) < MIN_IMAGES:
        raise BadUnit(f"{group}: expected at least {MIN_IMAGES} photos, found {len(photos)}")
    return [(photos[stem], masks[stem]) for stem in sorted(photos)]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _images(folder):
        if path.stem in found:
            raise BadUnit(
                f"{path}: expected one image of this name, found {found[path.stem].name} too"
            )
        found[path.stem] = path
    return found


def _load(root: Path, names: tuple[str, ...], index: int) -> Group:
    name = names[index]
    pairs = _paired(root / name)
    pictures = [read_picture(photo) for photo, _ in pairs]
    masks = tuple(
        picture.header.mask(_read_truth(truth, photo))
        for picture, (photo, truth) in zip(pictures, pairs, strict=True)
    )
    return Group(name, name, tuple(picture.image for picture in pictures), masks)


def _read_truth(truth: Path, photo: Path) -> np.ndarray:
    header_for(photo, truth)
    with opened(truth, expected="a mask") as image:
        if image.mode.startswith(("I", "F")):
            raise BadUnit(f"{truth}: expected a mask of 8 bits, found mode {image.mode}")
        rgb_HW3 = np.asarray(image.convert("RGB")).astype(int)
    grey_HW = rgb_HW3.mean(axis=2)
    if np.abs(rgb_HW3 - grey_HW[..., None]).max() > 16:  # beyond what JPEG does to greys
        raise BadUnit(
            f"{truth}: expected a white object on black, found colours (the masks of the 21-class "
            "MSRC set); use the co-segmentation groups' masks"
        )
    mask_HW = (grey_HW > THRESHOLD).astype(np.uint8)
    if grey_HW.any() and not mask_HW.any():
        raise BadUnit(
            f"{truth}: expected a white object (255) on black (0), found nothing above "
            f"{int(grey_HW.max())}; masks of labels 0 and 1 must be multiplied by 255"
        )
    return mask_HW
