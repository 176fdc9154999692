"""Pictures of every mode, format and suffix, whole and broken: shown as they are or one line.

The deadline of `conftest.py` is what a hang is.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from PIL import Image

from kvfix.data.pictures.read import read_header, read_picture
from kvfix.data.units import BadUnit

# What each format can hold.
MODES = {
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA", "L"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I;16B", "I", "F"),
}
SUFFIXES = (".jpg", ".png", ".gif", ".tif", ".bmp", ".webp", ".eps", "")


@st.composite
def pictures(draw: Any) -> tuple[bytes, np.ndarray]:
    """An encoded picture, and its pixels as float RGB on white, made without kvfix."""
    format = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[format]))
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rgba = rng.integers(0, 256, (height, width, 4), np.uint8)
    if draw(st.booleans()):  # smooth, as photos are
        rgba[..., :3] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    image = Image.fromarray(rgba)
    image = _of_mode(image, mode, rng)
    options: dict[str, Any] = {}
    if format == "WEBP":
        options["lossless"] = True
    if format == "TIFF" and mode != "F":
        options["compression"] = draw(st.sampled_from(["raw", "tiff_lzw", "tiff_adobe_deflate"]))
    turn = draw(st.integers(1, 8)) if format in ("JPEG", "PNG", "WEBP") else 1
    if turn != 1:
        exif = Image.Exif()
        exif[0x0112] = turn
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, format, **options)
    note(f"{format} {mode} {width} x {height} {options}")
    if format == "BMP" and mode == "RGBA":  # written without saying that the fourth byte is alpha
        image = Image.merge("RGB", image.split()[:3])
    if format == "GIF":  # its colours and its transparency are what GIF made of them
        image = Image.open(io.BytesIO(stream.getvalue())).convert("RGBA")
    return stream.getvalue(), _reference(image, turn)


def _of_mode(image: Image.Image, mode: str, rng: np.random.Generator) -> Image.Image:
    shape = image.size[::-1]
    if mode == "F":
        return Image.fromarray(rng.random(shape, np.float32))
    if mode == "I":
        return Image.fromarray(rng.integers(0, 2**16, shape, np.int32))
    if mode.startswith("I;16"):
        top = int(rng.choice([255, 1023, 4095, 65535]))
        values = rng.integers(0, top + 1, shape).astype(">u2" if mode == "I;16B" else "<u2")
        return Image.fromarray(values)
    if mode in ("PA", "LAB"):
        return (
            image.convert("RGB").convert("P").convert("PA")
            if mode == "PA"
            else image.convert("RGB").convert(mode)
        )
    if mode in ("RGBA", "LA"):
        return image.convert(mode)
    return image.convert("RGB").convert(mode)


def _reference(image: Image.Image, turn: int) -> np.ndarray:
    """Float (height, width, 3), by numpy as far as Pillow does not do it right."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(float)
        tops = [1.0] if image.mode == "F" else [2.0**b - 1 for b in (8, 10, 12, 14, 16)]
        top = next(t for t in tops if values.max() <= t)
        rgb = np.repeat(255 * values[..., None] / top, 3, axis=2)
    elif image.mode in ("RGBA", "LA", "PA"):
        rgba = np.asarray(image.convert("RGBA")).astype(float)
        share = rgba[..., 3:] / 255
        rgb = rgba[..., :3] * share + 255 * (1 - share)
    else:
        rgb = np.asarray(image.convert("RGB")).astype(float)
    if turn in (5, 6, 7, 8):
        rgb = rgb.swapaxes(0, 1)
    rgb = rgb[::-1] if turn in (3, 4, 7, 8) else rgb
    return rgb[:, ::-1] if turn in (2, 3, 6, 7) else rgb


def _read(source: Path | bytes) -> Image.Image | str:
    """The picture, or the line that says why there is none."""
    try:
        return read_picture(source, where=None if isinstance(source, Path) else "here").image
    except BadUnit as error:
        assert "expected a photo" in str(error) and "\n" not in str(error)
        assert len(str(error)) < 700
        return str(error)


@given(pictures(), st.sampled_from(SUFFIXES))
def test_a_whole_picture_is_what_it_shows(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[bytes, np.ndarray], suffix: str
) -> None:
    data, expected = made
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(data)
    found = _read(path)
    if isinstance(found, str):
        assert "nothing but transparent pixels" in found and (expected == 255).all()
        return
    assert found.mode == "RGB" and (found.height, found.width) == expected.shape[:2]
    assert read_header(path).size == found.size
    lossy = data[:3] == b"\xff\xd8\xff"  # JPEG blurs noise: over a picture that comes out even
    apart = np.abs(np.asarray(found).astype(float) - expected)
    assert abs(np.asarray(found).mean() - expected.mean()) < (12 if lossy else 1)
    assert lossy or apart.max() <= 1.5


@given(
    pictures(),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.sampled_from(SUFFIXES),
)
def test_a_broken_picture_is_read_or_named_and_never_waited_for(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[bytes, np.ndarray],
    flips: list[tuple[float, int]],
    kept: float,
    suffix: str,
) -> None:
    data = bytearray(made[0])
    for at, value in flips:
        data[int(at * (len(data) - 1))] ^= value
    data = data[: max(1, round(kept * len(data)))]
    path = tmp_path_factory.getbasetemp() / f"broken{suffix}"
    path.write_bytes(data)
    found = _read(path)
    assert isinstance(found, str) or found.mode == "RGB"
    again = _read(bytes(data))
    assert isinstance(again, str) == isinstance(found, str)
    if isinstance(found, Image.Image) and isinstance(again, Image.Image):
        assert found.tobytes() == again.tobytes()


@given(st.binary(max_size=400), st.sampled_from(["", "GIF89a", "BM", "II*\0", "MM\0*", "RIFF"]))
def test_rubbish_is_named(data: bytes, start: str) -> None:
    found = _read(start.encode() + data)
    assert isinstance(found, str) or found.mode == "RGB"
