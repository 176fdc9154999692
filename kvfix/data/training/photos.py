"""What stands for a photo in a training record: a file's name, or the encoded picture itself.

Relative names stay below one folder. An absolute name that exists is taken: who trains wrote it or
has read it. One that does not exist often was written on another machine; where the end of the
first such name is a file below the folder, the folder takes the place of its beginning in all of
them. Nothing is fetched from a network.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from kvfix.data.pictures.read import Header, Picture, read_header, read_picture
from kvfix.wording import short_path, shown

_REMOTE = re.compile(r"(?!file:)[a-z][a-z0-9+.\-]*://", re.IGNORECASE)
# How encoded JPEG, PNG, GIF, WebP, BMP and TIFF files begin in base64.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")
_FEWEST = 64  # characters of a picture in base64; shorter ones are names
_LONGEST_NAME, _LONGEST_PART = 4096, 255  # of a path, in bytes, as Linux has it
_FIELDS = ("bytes", "path", "url", "image", "image_url", "base64", "data")
INSIDE = "a picture in the record"


@dataclass(frozen=True)
class Photo:
    """One picture: a file, or the bytes of one."""

    name: str  # for messages
    source: Path | bytes = field(repr=False)

    def read(self) -> Picture:
        """The picture as RGB, decoded to its last byte; raises a BadUnit where it cannot be."""
        return read_picture(self.source, where=self._where)

    def header(self) -> Header:
        """What its header says of its size, and how it is turned; raises as `read` does."""
        return read_header(self.source, where=self._where)

    @property
    def _where(self) -> str | None:
        return self.name if isinstance(self.source, bytes) else None


@dataclass(frozen=True)
class Places:
    """Where names of pictures lead."""

    root: Path  # the folder that relative names start from
    moved: str | None = None  # how absolute names of another machine begin, for which `root` stands

    def photo(self, cell: object) -> Photo:
        """The picture that a record names or holds; raises a ValueError where there is none."""
        if isinstance(cell, dict):
            return self._of_fields(cell)
        if isinstance(cell, bytes) and cell:
            return Photo(INSIDE, cell)
        if not isinstance(cell, str) or not cell.strip():
            raise ValueError(f"expected images, file names, found {shown(cell)}")
        if cell.startswith("data:"):
            return Photo(INSIDE, _decoded(cell.partition(",")[2]))
        if _REMOTE.match(cell):
            raise ValueError(
                f"expected images on this machine, found {shown(cell)}; training reads nothing "
                "from a network: download it, and name the file"
            )
        if len(cell) >= _FEWEST and cell.startswith(_BASE64) and "." not in cell:
            return Photo(INSIDE, _decoded(cell))
        if cell.startswith("file:"):
            cell = unquote(cell.removeprefix("file:").removeprefix("//"))
        path = self._path(_plain(cell))
        if not is_file(path):
            raise ValueError(f"{short_path(path)}: expected a photo, found no such file")
        return Photo(path.name, path)

    def _of_fields(self, cell: dict) -> Photo:
        """The picture of a mapping as datasets and chat formats have it; bytes before a path."""
        for name in _FIELDS:
            value = cell.get(name)
            if value is None:
                continue
            if name in ("bytes", "base64", "data") and isinstance(value, str):
                value = _decoded(value.partition(",")[2] if value[:5] == "data:" else value)
            if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
                break
            return self.photo(value)
        raise ValueError(
            f"expected images, file names or objects of path or bytes, found {shown(cell)}"
        )

    def _path(self, name: PurePosixPath) -> Path:
        if not name.is_absolute():
            return self.root / name
        if self.moved is None or is_file(Path(name)) or not name.is_relative_to(self.moved):
            return Path(name)
        return self.root / name.relative_to(self.moved)

    def moved_from(self, cell: object) -> str | None:
        """The beginning of an absolute name that is no file, if its end is a file below `root`."""
        if not isinstance(cell, str) or not cell.startswith("/") or len(cell) > _LONGEST_NAME:
            return None
        try:
            name = _plain(cell)
        except ValueError:
            return None
        if is_file(Path(name)):
            return None
        for start in range(1, len(name.parts)):
            if is_file(self.root.joinpath(*name.parts[start:])):
                return str(PurePosixPath(*name.parts[:start]))
        return None


def is_file(path: Path) -> bool:
    """Whether there is one; no name is too strange to ask."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _plain(name: str) -> PurePosixPath:
    if len(name) > _LONGEST_NAME or any(
        len(part.encode("utf-8", "surrogatepass")) > _LONGEST_PART for part in name.split("/")
    ):
        raise ValueError(
            f"expected images, file names, found {len(name):,} characters: {shown(name)}"
        )
    path = PurePosixPath(name)
    if ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(
            f"expected images below the folder of the file (or of images=DIR), found {shown(name)}"
        )
    return path


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"expected images in base64, found {shown(text)} ({error})") from error
    if not data:
        raise ValueError("expected images in base64, found none")
    return data
