"""Every picture that kvfix looks at is read here: a file or its bytes -> an upright RGB image.

What is opened. Regular files of six formats. Pillow knows forty, and for some of them runs other
programs (Ghostscript for an EPS named photo.jpg). Of several frames or pages the first counts.

What is refused, as a `BadUnit` that names the file: what is broken, cut off or empty; more pixels
than `MAX_PIXELS`, which is read from the header, before anything is decoded; and sides that differ
more than `MAX_RATIO` times, which Qwen's processors refuse and the others squeeze to a few pixels:
one rule for all models, so that all are measured on the same units.

Pillow does not look at a PNG's checksums and shows what was overwritten as black; kvfix looks at
those of the pixels. A JPEG, a BMP and a TIFF have none.

EXIF turns are applied. Annotations belong to the pixels as they are stored, because the official
tools of the benchmarks read photos without their EXIF; they are turned with the photo
(`Header.mask`, `Header.points`), unless their size says that they were drawn on the photo as it is
shown. Where both sizes are equal (a square photo, half a turn, a mirrored one), size cannot tell,
and annotations count as those of the stored pixels. Pixels: see `kvfix.data.pictures.rgb`.
"""

from __future__ import annotations

import errno
import io
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from kvfix.data.pictures.rgb import scale_key, to_rgb
from kvfix.data.pictures.turns import TURNS, UPRIGHT, turn_image, turn_mask, turn_points, turn_size
from kvfix.data.units import BadUnit
from kvfix.wording import cause, short_path

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # 256 MiB as RGB; Pillow warns above it
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BLOCK = 1 << 20  # bytes that are summed at once
MAX_RATIO = 200  # times that the longer side may be as long as the shorter
# What an OSError says that is the machine's fault, and no file's.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_SOURCE = "kvfix source"  # key of an image's info

# Broken EXIF and the like, without the file's name; what matters is said by the errors below.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Header(NamedTuple):
    """What a picture's header says."""

    size: tuple[int, int]  # width, height as the picture is shown
    stored: tuple[int, int]  # width, height as its pixels are stored
    turn: int  # EXIF's number: from stored to shown

    def turn_of(self, size: tuple[int, int]) -> int | None:
        """How an annotation of this (width, height) is turned; None: it fits neither way."""
        if size == self.stored:
            return self.turn
        return UPRIGHT if size == self.size else None

    def mask(self, mask_HW: np.ndarray) -> np.ndarray:
        """A mask on the picture as it is shown; one of another size is a ValueError."""
        height, width = mask_HW.shape
        turn = self.turn_of((width, height))
        if turn is None:
            raise ValueError(
                f"expected a mask of {self.stored[0]} x {self.stored[1]} pixels like its photo, "
                f"found {width} x {height}"
            )
        return turn_mask(mask_HW, turn)

    def points(self, xy_K2: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Points (x, y) on the picture as it is shown, float64 (K, 2), pixel centres at integers.

        They belong to a picture of this width and height; None stands for the stored pixels.
        """
        turn = self.turn if size is None else self.turn_of(size)
        return turn_points(xy_K2, UPRIGHT if turn is None else turn, self.stored)


class Picture(NamedTuple):
    """An image, and how it lay on disk."""

    image: Image.Image  # RGB, upright
    header: Header


def read_picture(
    source: Path | bytes, *, where: str | None = None, expected: str = "a photo"
) -> Picture:
    """A picture as RGB, upright, decoded to its last byte, or a BadUnit (see the top).

    `where` and `expected` are for messages: what it is called (None for its path) and should be.
    """
    with opened(source, where=where, expected=expected) as image:
        header = _header(image)
        rgb = to_rgb(image)
        # A TIFF is turned already when it is decoded.
        turned = rgb if image.format == "TIFF" else turn_image(rgb, header.turn)
        plain = turned.copy() if turned is image else turned  # the file is closed below
        plain.info = {_SOURCE: _name(source, where)}
        return Picture(plain, header)


def read_header(
    source: Path | bytes, *, where: str | None = None, expected: str = "a photo"
) -> Header:
    """Sizes and turn of a picture; decodes nothing but a PNG, whose EXIF may stand at its end."""
    with opened(source, where=where, expected=expected) as image:
        return _header(image)


def source_of(image: Image.Image) -> str | None:
    """The file or row that an image was read from, through resizing and cropping; None if none."""
    return image.info.get(_SOURCE)


@contextmanager
def opened(
    source: Path | bytes, *, where: str | None = None, expected: str = "an image"
) -> Iterator[Image.Image]:
    """An image whose header was checked, not decoded yet: for masks, whose stored numbers count."""
    wanted = f"{_name(source, where)}: expected {expected}"
    try:
        with _stream(source, wanted) as stream, Image.open(stream, formats=FORMATS) as image:
            _check_size(image.size, wanted)
            if image.format == "PNG":
                _check_png(stream, wanted)
            scale_key(image)
            yield image
    except BadUnit:
        raise
    except UnidentifiedImageError as error:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        raise BadUnit(
            f"{wanted}, found {size} bytes of no known format ({', '.join(FORMATS)})"
        ) from error
    except MemoryError:
        raise  # the machine's fault: the number of pixels is bounded
    except Exception as error:  # decoders raise nearly everything on broken bytes
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise
        what = "a broken file" if isinstance(source, Path) else "a broken one"
        raise BadUnit(f"{wanted}, found {what} ({cause(error, 150)})") from error


def _name(source: Path | bytes, where: str | None) -> str:
    if where is not None:
        return short_path(where)
    return short_path(source) if isinstance(source, Path) else f"{len(source)} bytes"


def _stream(source: Path | bytes, wanted: str) -> BinaryIO:
    """The source opened for reading, if it is a regular file: a pipe would be waited for."""
    if isinstance(source, bytes):
        if not source:
            raise BadUnit(f"{wanted}, found no bytes")
        return io.BytesIO(source)
    try:
        status = source.stat()
        if stat.S_ISDIR(status.st_mode):
            raise BadUnit(f"{wanted}, found a folder")
        if not stat.S_ISREG(status.st_mode):
            raise BadUnit(f"{wanted}, found a pipe, a socket or a device")
        if not status.st_size:
            raise BadUnit(f"{wanted}, found an empty file (0 bytes)")
        return source.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadUnit(f"{wanted}, found no such file") from error
    except PermissionError as error:
        raise BadUnit(f"{wanted}, found a file that may not be read") from error
    except OSError as error:
        if error.errno in MACHINE:
            raise
        raise BadUnit(f"{wanted}, found a file that cannot be opened ({error.strerror})") from error
    except BadUnit:
        raise
    except ValueError as error:  # a zero byte in the name
        raise BadUnit(f"{wanted}, found a name that no file can have") from error


def _check_png(stream: BinaryIO, wanted: str) -> None:
    """Compare the checksums of a PNG's pixels; where the file stops, the decoder says so."""
    at = stream.tell()
    stream.seek(len(PNG_SIGNATURE))
    while len(head := stream.read(8)) == 8 and head[4:].isalpha():
        length, kind = int.from_bytes(head[:4]), head[4:]
        if kind not in (b"IDAT", b"fdAT"):
            stream.seek(length + 4, io.SEEK_CUR)
            continue
        sum_found, left = zlib.crc32(kind), length
        while left and (part := stream.read(min(left, BLOCK))):
            sum_found, left = zlib.crc32(part, sum_found), left - len(part)
        stated = stream.read(4)
        if not left and len(stated) == 4 and int.from_bytes(stated) != sum_found:
            raise BadUnit(f"{wanted}, found a broken file (a checksum of its pixels is wrong)")
    stream.seek(at)


def _check_size(size: tuple[int, int], wanted: str) -> None:
    width, height = size
    if min(size) < 1:
        raise BadUnit(f"{wanted}, found {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise BadUnit(
            f"{wanted} of at most {MAX_PIXELS:,} pixels, found {width} x {height}; scale it down"
        )
    if max(size) > MAX_RATIO * min(size):
        raise BadUnit(
            f"{wanted} whose sides differ at most {MAX_RATIO} times, found {width} x {height}: no "
            "model can read it; cut it up"
        )


def _header(image: Image.Image) -> Header:
    turn = _exif_turn(image)
    turned = turn_size(image.size, turn)
    if image.format == "TIFF":  # Pillow gives the size after the turn
        return Header(image.size, turned, turn)
    return Header(turned, image.size, turn)


def _exif_turn(image: Image.Image) -> int:
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # broken EXIF beside whole pixels: shown as stored, as viewers do
        return UPRIGHT
    return turn if turn in TURNS else UPRIGHT
