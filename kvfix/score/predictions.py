"""Predictions as `kvfix score` takes them: JSON lines, or a folder of mask images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from kvfix.data.files import digest
from kvfix.data.json_object import LINE, json_object
from kvfix.data.pictures.read import opened
from kvfix.data.units import BadUnit

T = TypeVar("T")


class Lines(Generic[T]):
    """Predictions of a file with a JSON object in each line, by unit id.

    `key` is the field that names a unit of `ids`, each of which may come once; `read` takes the
    object and its place, and raises a ValueError for another form.
    """

    def __init__(
        self,
        path: Path,
        ids: Sequence[str],
        *,
        key: str,
        read: Callable[[dict[str, Any], str], T],
    ):
        self.path, self.ids, self._whole = path, ids, hashlib.sha256()
        self.found: dict[str, T] = {}
        for where, value in _objects(path, self._whole):
            name = value.get(key)
            if not isinstance(name, str):
                raise ValueError(f'{where}: expected "{key}", a unit\'s id, found {name!r}')
            if name in self.found:
                raise ValueError(f"{where}: expected every unit once, found {name} again")
            self.found[name] = read(value, where)
        self.missing, self.unknown = _sides(ids, self.found)
        if len(self.missing) == len(ids):
            raise ValueError(
                f"{path}: expected predictions for units such as {ids[0]!r}, found "
                f"{some(self.unknown)}"
            )

    def get(self, name: str) -> T | None:
        """The prediction for a unit, or None."""
        return self.found.get(name)

    def card(self) -> dict[str, Any]:
        """What was read, for the record."""
        n = len(self.ids) - len(self.missing)
        return {"path": str(self.path), "n": n, "sha256": self._whole.hexdigest()}


class MaskFolder:
    """Predicted mask images by unit id: `<folder>/<id>.png`, where an id may be `group/image`.

    `ids` are the units that there are to predict; empty where those are that will be asked for.
    """

    def __init__(
        self, folder: Path, ids: Sequence[str] = (), *, suffixes: Sequence[str] = (".png",)
    ):
        if not folder.is_dir():
            found = "a file" if folder.exists() else "no such folder"
            raise FileNotFoundError(f"{folder}: expected a folder of masks, found {found}")
        self.folder, self.ids, self._suffix = folder, dict.fromkeys(ids), suffixes[0]
        self._paths: dict[str, Path] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in suffixes or path.name.startswith("."):
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in self._paths:
                raise ValueError(
                    f"{path}: expected one mask of this name, found {self._paths[name].name} too"
                )
            self._paths[name] = path
        if ids:
            self._used()

    @property
    def missing(self) -> list[str]:
        """What there is to predict without a mask."""
        return _sides(self.ids, self._paths)[0]

    @property
    def unknown(self) -> list[str]:
        """Masks of nothing that there is to predict."""
        return _sides(self.ids, self._paths)[1]

    def read(
        self, name: str, read: Callable[[Path], np.ndarray], like_HW: np.ndarray
    ) -> np.ndarray:
        """The mask of a unit, of its truth's size; all zero if there is none."""
        self.ids.setdefault(name)
        path = self._paths.get(name)
        if path is None:
            return np.zeros_like(like_HW)
        mask_HW = read(path)
        check_size(path, mask_HW, like_HW)
        return mask_HW

    def card(self) -> dict[str, Any]:
        """Which masks were used, for the record."""
        used = self._used()
        sha256 = digest(self.folder, annotations=used, photos=())
        return {"path": str(self.folder), "n": len(used), "sha256": sha256}

    def _used(self) -> list[Path]:
        used = [self._paths[name] for name in self.ids if name in self._paths]
        if not used:
            found = some([f"{n}{self._paths[n].suffix}" for n in self.unknown])
            example = f"{next(iter(self.ids))}{self._suffix}"
            raise ValueError(f"{self.folder}: expected masks such as {example}, found {found}")
        return used


class Pixels(NamedTuple):
    """A mask image as it is stored: (height, width), or (height, width, 3) of mode RGB."""

    mode: str
    values: np.ndarray


def read_pixels(path: Path, modes: Sequence[str]) -> Pixels:
    """The stored values of a mask (palette indices, grey values or colours) of one of the modes."""
    try:
        with opened(path, expected="a mask") as image:
            mode = image.mode
            values = np.asarray(image) if mode in modes else None
    except BadUnit as error:
        raise ValueError(str(error)) from error  # here the prediction is at fault, not the unit
    if values is None:
        raise ValueError(f"{path}: expected a mask of mode {' or '.join(modes)}, found {mode}")
    return Pixels(mode, values)


def read_binary(path: Path, *, soft: bool = False) -> np.ndarray:
    """A predicted binary mask, bool (height, width), from an image of 0 and 1, or 0 and 255.

    Of a palette the indices count, not the colours. `soft` also takes an anti-aliased mask, in
    colours of grey too: above 127 is foreground.
    """
    mode, values = read_pixels(path, ("1", "L", "P", *(("RGB", "RGBA") if soft else ())))
    if mode == "1":
        return values
    grey_HW = values[..., :3].mean(axis=2) if values.ndim == 3 else values
    top = grey_HW.max(initial=0)
    if top <= 1:
        return grey_HW > 0
    if not soft and (strange := set(np.unique(grey_HW).tolist()) - {0, 255}):
        raise ValueError(
            f"{path}: expected a binary mask of 0 and 1, or 0 and 255, found {min(strange):g}"
        )
    return grey_HW > 127


def check_size(path: Path, predicted_HW: np.ndarray, truth_HW: np.ndarray) -> None:
    """Refuse a mask that is not of its truth's size."""
    if predicted_HW.shape[:2] != truth_HW.shape[:2]:
        (h, w), (found_h, found_w) = truth_HW.shape[:2], predicted_HW.shape[:2]
        raise ValueError(
            f"{path}: expected {w} x {h} pixels like the truth, found {found_w} x {found_h}"
        )


def _objects(path: Path, whole: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        found = "a folder" if path.exists() else "no such file"
        raise FileNotFoundError(
            f"{path}: expected predictions, one JSON object a line, found {found}"
        )
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            whole.update(line)
            if line.strip():
                yield (where := f"{path}:{number}"), json_object(line, where, expected=LINE)


def _sides(ids: Collection[str], found: Collection[str]) -> tuple[list[str], list[str]]:
    known = set(ids)
    return [i for i in ids if i not in found], [name for name in found if name not in known]


def some(names: Sequence[str], most: int = 3) -> str:
    """A few names for a message, and how many more there are."""
    more = len(names) - most
    shown = ", ".join(n[:80] for n in names[:most]) or "none"
    return shown + (f" and {more} more" if more > 0 else "")
