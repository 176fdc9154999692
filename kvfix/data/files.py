"""What readers of benchmarks share: the folder, its lists and images, checked as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from kvfix.data.pictures.read import Header, opened, read_header, read_picture
from kvfix.data.texts import bounded
from kvfix.data.units import BadUnit
from kvfix.wording import shown

T = TypeVar("T")


def check_folder(folder: Path, name: str) -> None:
    """Raise a FileNotFoundError if the folder of the dataset `name` is none."""
    if not folder.is_dir():
        found = "a file, not a folder" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: expected the {name} folder, found {found}")


def find_root(folder: Path, *, name: str, holds: Sequence[str]) -> Path:
    """The dataset's own folder: `folder`, or `folder/name` when the parent was given."""
    check_folder(folder, name)
    root = min((folder, folder / name), key=lambda r: sum(not (r / h).exists() for h in holds))
    missing = [h for h in holds if not (root / h).exists()]
    if missing:
        raise FileNotFoundError(
            f"{root}: expected {', '.join(holds)} in it; missing: {', '.join(missing)}. `kvfix "
            "data list` shows the tree"
        )
    return root


def read_lines(path: Path, expected: str) -> list[str]:
    """The lines of a text file, or a ValueError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, {expected}; {error}") from error


def read_list(path: Path) -> tuple[str, ...]:
    """The names in a split's list, in order: each once, and none that leads out of its folder."""
    lines = read_lines(path, "one name a line")
    names = [bounded(line.strip()) for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path}: expected one name a line, found an empty list")
    for name in names:
        if not is_plain(name):
            raise ValueError(f"{path}: expected plain names without folders, found {shown(name)}")
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise ValueError(f"{path}: expected every name once, found {shown(twice)} again")
    return tuple(names)


def is_plain(name: object) -> bool:
    """Whether a name read from a file stays in its folder when it is joined to a path."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(c in name for c in "/\\\0")
    )


def listed(folder: Path, suffix: str) -> tuple[Path, ...]:
    """Files of one kind in a folder by name, without hidden ones; empty if there is no folder."""
    if not folder.is_dir():
        return ()
    kept = (p for p in folder.iterdir() if p.suffix == suffix and not p.name.startswith("."))
    return tuple(sorted(kept))


def mask_size(path: Path) -> tuple[int, int]:
    """Width and height of a mask's stored pixels, from its header alone."""
    with opened(path, expected="a mask") as image:
        return image.size


def header_for(photo: Path, mask: Path) -> Header:
    """The header of a photo, or a BadUnit if the mask is not as large as it."""
    header, found = read_header(photo), mask_size(mask)
    if header.turn_of(found) is None:
        width, height = header.stored
        raise BadUnit(
            f"{mask}: expected {width} x {height} pixels like its photo, found {found[0]} x "
            f"{found[1]}"
        )
    return header


def read_photo(path: Path) -> Image.Image:
    """A photo as upright RGB, decoded to its last byte, or a BadUnit."""
    return read_picture(path).image


def read_labels(path: Path) -> np.ndarray:
    """A label image, uint8 (height, width): palette indices or grey values; else a BadUnit."""
    with opened(path, expected="a mask") as image:
        mode = image.mode
        labels_HW = np.array(image) if mode in ("P", "L") else None
    if labels_HW is None:
        raise BadUnit(
            f"{path}: expected a mask of mode P (its palette indices are labels) or L, found {mode}"
        )
    return labels_HW


def digest(root: Path, *, annotations: Iterable[Path], photos: Iterable[Path]) -> str:
    """SHA-256 over paths and sizes of all files that exist, and the content of annotations."""
    whole = hashlib.sha256()
    content = dict.fromkeys(annotations, True) | dict.fromkeys(photos, False)
    for path in sorted(content):
        if not path.is_file():
            continue
        name = path.relative_to(root).as_posix()
        whole.update(f"{name}\n{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        if content[path]:
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def faults(read: Callable[[T], object], *items: T) -> Iterator[str]:
    """What is wrong with each item that cannot be read; reads them all."""
    for item in items:
        try:
            read(item)
        except BadUnit as error:
            yield str(error)
