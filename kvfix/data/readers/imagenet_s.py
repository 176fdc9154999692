"""ImageNet-S validation: the pixels of an image's class, asked for by the class's name.

Layout and ids: LUSSeg/ImageNet-S. A mask is an RGB image: class id = R + 256 * G, 0 for other
things, 1000 for pixels that do not count. Class ids count the sorted WordNet ids of the subset (50,
300 or 919 classes) from 1, so they follow from the folders of a whole subset; a part of one needs
the official category list beside it. The official tree names no class in words; the names are those
of ImageNet (`imagenet_names.py`).

Units come in a fixed scattered order, one class after the other in turn, so that a limit keeps many
classes. A unit's `category` is the WordNet id, because two pairs of classes share a name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kvfix.data.files import check_folder, digest, faults, header_for, read_list
from kvfix.data.groups import grouped, in_turn
from kvfix.data.pictures.read import opened, read_picture
from kvfix.data.readers.imagenet_names import NAMES
from kvfix.data.units import VOID, BadUnit, Sentence, Truths, UnitSet

TREE = """\
ImageNetS50/                               or ImageNetS300, ImageNetS919; DIR is this folder or its
                                           parent, if that holds one of the three
  validation/<wordnet id>/x.JPEG           photos
  validation-segmentation/<wordnet id>/x.png  masks, RGB: class id = R + 256 * G, 0 other, 1000 void
  ImageNetS_categories_im50.txt            only for a part of the classes: the official list
"""
OFFICIAL_IMAGES = {50: 752, 300: 4097, 919: 12419}  # of the validation set, by classes
SUBSETS = tuple(OFFICIAL_IMAGES)
IGNORE = 1000
_PHOTOS, _MASKS = "validation", "validation-segmentation"
_WORDNET_ID = re.compile(r"n\d{8}")


class _Image(NamedTuple):
    wordnet_id: str
    name: str  # without suffix

    @property
    def id(self) -> str:
        return f"{self.wordnet_id}/{self.name}"


class _Tree(NamedTuple):
    root: Path
    ids: dict[str, int]  # WordNet id -> class id


def imagenet_s_sentences(folder: Path) -> UnitSet:
    """One unit for each validation image; lists files and reads masks for the digest, no photo."""
    tree = _tree(folder)
    images = _scattered(_listed(tree))
    sha256 = digest(
        tree.root,
        annotations=[_mask(tree.root, image) for image in images],
        photos=[_photo(tree.root, image) for image in images],
    )
    return UnitSet(
        "semantic_segmentation",
        "imagenet_s",
        f"validation ({len(tree.ids)} classes)",
        tuple(image.id for image in images),
        partial(_load, tree, images),
        sha256,
        "image",
    )


@dataclass(frozen=True)
class LabelMaps(Truths[np.ndarray]):
    """The validation masks as maps of class ids, int32 (height, width); 1000 does not count."""

    classes: tuple[str, ...]  # WordNet ids; class id i is `classes[i - 1]`


def imagenet_s_truths(folder: Path) -> LabelMaps:
    """The whole masks of the same images in the same order; raises as `imagenet_s_sentences`."""
    units, tree = imagenet_s_sentences(folder), _tree(folder)

    def load(index: int) -> np.ndarray:
        wordnet_id, name = units.ids[index].split("/", 1)
        return _read_ids(tree, _Image(wordnet_id, name))

    return LabelMaps(units, load, tuple(tree.ids))


def imagenet_s_problems(folder: Path) -> Iterator[str]:
    """Everything wrong with an ImageNet-S folder; decodes every photo and mask."""
    tree = _tree(folder)
    yield from faults(partial(_read, tree), *_listed(tree))
    for image in _listed(tree, of=_MASKS):
        if not _photo(tree.root, image).exists():
            yield f"{_photo(tree.root, image)}: expected a photo for every mask, found no such file"


def imagenet_s_notes(folder: Path) -> Iterator[str]:
    """How many images and classes are there, and where that is a part of the subset."""
    tree = _tree(folder)
    images = _listed(tree)
    present = {image.wordnet_id for image in images}
    yield f"{len(images):,} images of {len(present)} of {len(tree.ids)} classes"
    if len(images) != OFFICIAL_IMAGES[len(tree.ids)]:
        yield (
            f"the official validation set has {OFFICIAL_IMAGES[len(tree.ids)]:,} images: this is a "
            "part of it, and results on it are not ImageNet-S's"
        )


def _tree(folder: Path) -> _Tree:
    root = _root(folder)
    folders = (p for p in (root / _PHOTOS).iterdir() if p.is_dir())
    found = sorted(p.name for p in folders if not p.name.startswith("."))
    strange = [name for name in found if not _WORDNET_ID.fullmatch(name) or name not in NAMES]
    if strange:
        raise ValueError(
            f"{root / _PHOTOS / strange[0]}: expected a folder of an ImageNet class, named by its "
            "WordNet id such as n01440764"
        )
    return _Tree(root, {w: i for i, w in enumerate(_classes(root, found), start=1)})


def _root(folder: Path) -> Path:
    check_folder(folder, "ImageNet-S")
    roots = [folder, *(folder / f"ImageNetS{n}" for n in SUBSETS)]
    whole = [r for r in roots if (r / _PHOTOS).is_dir() and (r / _MASKS).is_dir()]
    if not whole:
        raise FileNotFoundError(
            f"{folder}: expected {_PHOTOS} and {_MASKS} in it, or in ImageNetS50, ImageNetS300 or "
            "ImageNetS919, found no such folders. `kvfix data list` shows the tree"
        )
    if len(whole) > 1:
        raise ValueError(
            f"{folder}: expected one subset, found {', '.join(r.name for r in whole)}; pass one"
        )
    return whole[0]


def _classes(root: Path, found: list[str]) -> list[str]:
    """The subset's WordNet ids, sorted: of the official list, or the folders of a whole subset."""
    named = {f"ImageNetS{n}": n for n in SUBSETS}.get(root.name)
    sizes = SUBSETS if named is None else (named,)
    for size in sizes:
        for path in (r / f"ImageNetS_categories_im{size}.txt" for r in (root, root.parent)):
            if not path.is_file():
                continue
            classes = sorted(read_list(path))
            unknown = [w for w in found if w not in classes]
            if len(classes) != size or unknown:
                reason = f"no {unknown[0]}" if unknown else f"{len(classes)} lines"
                raise ValueError(
                    f"{path}: expected the {size} classes that {root / _PHOTOS} is made of, found "
                    f"{reason}"
                )
            return classes
    if len(found) not in sizes:
        expected = " or ".join(str(n) for n in sizes)
        raise ValueError(
            f"{root / _PHOTOS}: expected {expected} class folders, found {len(found)}; class ids "
            "count the classes of the whole subset, so copy its official list "
            f"(ImageNetS_categories_im{sizes[0]}.txt of LUSSeg/ImageNet-S, data/categories) to "
            f"{root}"
        )
    return found


def _listed(tree: _Tree, *, of: str = _PHOTOS) -> list[_Image]:
    suffix = ".png" if of == _MASKS else ".JPEG"
    out = []
    for wordnet_id in tree.ids:
        folder = tree.root / of / wordnet_id
        files = folder.iterdir() if folder.is_dir() else ()
        names = [p.stem for p in files if p.suffix == suffix and not p.name.startswith(".")]
        out += [_Image(wordnet_id, name) for name in sorted(names)]
    if not out and of == _PHOTOS:
        raise ValueError(f"{tree.root / of}: expected images <wordnet id>/*.JPEG, found none")
    return out


def _scattered(images: list[_Image]) -> tuple[_Image, ...]:
    """Classes in turn; the order of classes, and of images within one, is by hash of the name."""
    by_class = grouped(sorted(images, key=lambda i: _hash(i.id)), lambda i: i.wordnet_id)
    return in_turn(by_class[w] for w in sorted(by_class, key=_hash))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _photo(root: Path, image: _Image) -> Path:
    return root / _PHOTOS / image.wordnet_id / f"{image.name}.JPEG"


def _mask(root: Path, image: _Image) -> Path:
    return root / _MASKS / image.wordnet_id / f"{image.name}.png"


def _load(tree: _Tree, images: tuple[_Image, ...], index: int) -> Sentence:
    image = images[index]
    photo, mask_HW = _read(tree, image)
    name = NAMES[image.wordnet_id]
    return Sentence(image.id, image.id, photo, name, mask_HW, image.wordnet_id)


def _read(tree: _Tree, image: _Image) -> tuple[Image.Image, np.ndarray]:
    ids_HW = _read_ids(tree, image)
    own = tree.ids[image.wordnet_id]
    mask_HW = np.where(ids_HW == IGNORE, VOID, ids_HW == own).astype(np.uint8)
    photo, header = read_picture(_photo(tree.root, image))
    return photo, header.mask(mask_HW)


def _read_ids(tree: _Tree, image: _Image) -> np.ndarray:
    path = _mask(tree.root, image)
    header_for(_photo(tree.root, image), path)
    ids_HW = _class_ids(path)
    own = tree.ids[image.wordnet_id]
    present = np.unique(ids_HW).tolist()
    strange = [i for i in present if i > len(tree.ids) and i != IGNORE]
    if strange:
        raise BadUnit(
            f"{path}: expected class ids 0 to {len(tree.ids)} or {IGNORE}, found {strange[0]}"
        )
    if own not in present:
        raise BadUnit(
            f"{path}: expected class id {own} ({image.wordnet_id}), found "
            f"{', '.join(str(i) for i in present)}; the mask or the list of classes is of another "
            "subset"
        )
    return ids_HW


def _class_ids(path: Path) -> np.ndarray:
    """int32 (height, width); R + 256 * G, cast first because 8 bits would wrap."""
    with opened(path, expected="a mask") as image:
        mode = image.mode
        rgb_HW3 = np.asarray(image).astype(np.int32)
    if mode != "RGB":
        raise BadUnit(f"{path}: expected a mask of mode RGB (class id = R + 256 * G), found {mode}")
    if rgb_HW3[..., 2].any():
        raise BadUnit(
            f"{path}: expected class ids in R and G, found values in B: no ImageNet-S mask"
        )
    return rgb_HW3[..., 0] + 256 * rgb_HW3[..., 1]
