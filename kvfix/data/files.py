"""Files of a benchmark's folder: its root, lists, images; one clear line for each that fails.

What a reader learns from files on disk is checked here once: a name in a list must be a plain name,
an image must decode to its last byte (`kvfix.data.pictures.read`), and a digest tells whether two
runs saw the same data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
from PIL import Image

from kvfix.data.pictures.read import opened, read_picture
from kvfix.data.texts import bounded
from kvfix.data.units import BadUnit
from kvfix.wording import shown

T = TypeVar("T")


@dataclass(frozen=True)
class LazySequence(Sequence[T]):
    """Items that are read from their files on every access, so that one at a time is in memory.

    Args:
        paths: one file an item.
        read: path -> item; raises `BadUnit` for a file it cannot read.
    """

    paths: tuple[Path, ...]
    read: Callable[[Path], T]

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> LazySequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | LazySequence[T]:
        if isinstance(index, slice):
            return LazySequence(self.paths[index], self.read)
        return self.read(self.paths[index])


def find_root(folder: Path, *, name: str, holds: Sequence[str]) -> Path:
    """The dataset's own folder: `folder`, or `folder/name` when the parent was given.

    Args:
        folder: what the user passed.
        name: the official name of the dataset's folder.
        holds: relative paths that it must hold.

    Raises:
        FileNotFoundError: no such folder, or parts of the tree are missing.
    """
    if not folder.is_dir():
        found = "a file, not a folder" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: expected the {name} folder, found {found}")
    root = min((folder, folder / name), key=lambda r: sum(not (r / h).exists() for h in holds))
    missing = [h for h in holds if not (root / h).exists()]
    if missing:
        raise FileNotFoundError(
            f"{root}: expected {', '.join(holds)} in it; missing: {', '.join(missing)}. `kvfix "
            "data list` shows the tree"
        )
    return root


def read_list(path: Path) -> tuple[str, ...]:
    """The names in a split's list file, one a line, in order; what no file can be called is cut.

    Raises:
        ValueError: no name, a name twice, a name that would leave its folder, or not UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, one name a line; {error}") from error
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


def image_size(path: Path, expected: str = "an image") -> tuple[int, int]:
    """(width, height) of the stored pixels, from the header alone.

    Raises:
        BadUnit: no such file, or not an image.
    """
    with opened(path, expected=expected) as image:
        return image.size


def read_photo(path: Path) -> Image.Image:
    """A photo as upright RGB, decoded to its last byte.

    Raises:
        BadUnit: no such file, not an image, or cut off.
    """
    return read_picture(path).image


def read_labels(path: Path) -> np.ndarray:
    """A label image, uint8 (height, width): palette indices (mode P) or grey values (mode L).

    Raises:
        BadUnit: no such file, not an image, cut off, or a colour image (labels would be guesses).
    """
    with opened(path, expected="a mask") as image:
        mode = image.mode
        labels_HW = np.array(image) if mode in ("P", "L") else None
    if labels_HW is None:
        raise BadUnit(
            f"{path}: expected a mask of mode P (its palette indices are labels) or L, found {mode}"
        )
    return labels_HW


def digest(root: Path, *, annotations: Iterable[Path], photos: Iterable[Path]) -> str:
    """sha256 over relative paths and sizes of all files, and the content of annotations only.

    Photos are named and sized but not read, which keeps it fast; missing files are left out.
    """
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
