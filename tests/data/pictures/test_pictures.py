"""One function reads every picture: it shows what a viewer shows, or a line says why not."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixels import file_of, photo

from kvfix.data.pictures.read import opened, read_picture
from kvfix.data.pictures.rgb import grey_of, to_rgb
from kvfix.data.units import BadUnit

RAMP_HW = np.arange(32 * 48).reshape(32, 48)  # 0 .. 1535


def _grey(data: bytes) -> np.ndarray:
    """One channel of the read picture, all three being equal."""
    image = read_picture(data).image
    assert image.mode == "RGB"
    rgb_HW3 = np.asarray(image)
    assert (rgb_HW3 == rgb_HW3[..., :1]).all()
    return rgb_HW3[..., 0].astype(int)


def _near(found: np.ndarray, expected: np.ndarray, within: float = 1) -> bool:
    return bool(np.abs(found - expected).max() <= within)


# --- numbers of more than 8 bits -------------------------------------------------------------


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_integers_count_from_zero_to_the_top_of_the_depth_that_holds_them(top: int) -> None:
    values = (RAMP_HW * (top / RAMP_HW.max())).astype(np.uint16)
    assert _near(_grey(file_of(Image.fromarray(values))), 255 * values.astype(float) / top)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4", "<f4"])
def test_a_tiff_of_wide_numbers_shows_all_its_greys(dtype: str, tmp_path: Path) -> None:
    share = RAMP_HW / RAMP_HW.max()
    values = (share if dtype == "<f4" else share * 65535).astype(dtype)
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    found = np.asarray(read_picture(path).image)[..., 0].astype(int)
    assert _near(found, 255 * share) and len(np.unique(found)) > 250


def test_a_wide_picture_of_one_value_is_that_grey() -> None:
    for value, grey in ((0, 0), (65535, 255), (30000, 117), (4095, 255)):
        assert (_grey(file_of(Image.fromarray(np.full((8, 8), value, np.uint16)))) == grey).all()


def test_fractions_count_from_zero_to_one_and_other_numbers_by_the_pictures_own_range() -> None:
    assert grey_of(np.array([[0.0, 0.25], [0.5, 0.5]])).tolist() == [[0, 64], [128, 128]]
    assert grey_of(np.array([[-1000.0, 0.0, 1000.0]])).tolist() == [[0, 128, 255]]
    assert grey_of(np.array([[3.0, 4.0, 5.0]])).tolist() == [[0, 128, 255]]
    assert grey_of(np.array([[-1000, 0, 3000]], np.int32)).tolist() == [[0, 64, 255]]  # a CT
    assert grey_of(np.array([[7.0, 7.0]])).tolist() == [[127, 127]]
    assert grey_of(np.array([[0, 100_000, 200_000]], np.int32)).tolist() == [[0, 128, 255]]


def test_what_is_no_number_is_black_and_infinite_values_are_the_ends() -> None:
    values = np.array([[np.nan, -np.inf, np.inf, 0.5, 1.0, 0.0]], np.float32)
    assert grey_of(values).tolist() == [[0, 0, 255, 128, 255, 0]]
    with pytest.raises(BadUnit, match="no value that is a number"):
        read_picture(file_of(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"))


def test_a_tiff_whose_zero_is_white_is_turned_over() -> None:
    values = (RAMP_HW * 42).astype(np.uint16)
    plain = file_of(Image.fromarray(values), "TIFF")
    turned = file_of(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(turned)).tag_v2[262] == 0
    assert _near(_grey(plain), 255 - _grey(turned))


def test_unsigned_32_bits_do_not_become_negative() -> None:
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    data = file_of(Image.fromarray(values.view(np.int32)), "TIFF")
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))
    assert data.count(signed) == 1  # Pillow writes signed ones only
    data = data.replace(signed, unsigned)
    assert _grey(data).tolist() == [[0, 128, 255]]


# --- transparency ----------------------------------------------------------------------------


def _half_transparent(mode: str) -> Image.Image:
    """Black, transparent on its left half."""
    rgba = Image.new("RGBA", (16, 8), (0, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 8, 8))
    return rgba if mode == "RGBA" else rgba.convert(mode)


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "TIFF"),
        ("LA", "TIFF"),
        ("RGBA", "WEBP"),
        ("PA", "TIFF"),
    ],
)
def test_what_is_transparent_is_white(mode: str, format: str) -> None:
    lossless = {"lossless": True} if format == "WEBP" else {}
    grey_HW = _grey(file_of(_half_transparent(mode), format, **lossless))
    assert (grey_HW[:, :8] == 255).all() and (grey_HW[:, 8:] == 0).all()


def test_a_half_transparent_pixel_is_composed_as_qwen_composes_it() -> None:
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (9, 11, 4), np.uint8))
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.split()[3])
    assert read_picture(file_of(rgba)).image.tobytes() == white.tobytes()


def _png(bits: int, colour: int, rows: list[bytes], trns: bytes, plte: bytes = b"") -> bytes:
    """A PNG by hand: Pillow cannot write every kind that it can read."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    channels = {0: 1, 2: 3, 3: 1}[colour]
    width = len(rows[0]) * 8 // bits // channels
    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", head), chunk(b"PLTE", plte) if plte else b"", chunk(b"tRNS", trns)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_one_value_that_stands_for_transparent_is_white_at_every_depth() -> None:
    of_8 = _png(8, 0, [bytes([0, 80, 90, 255])], struct.pack(">H", 80))
    assert _grey(of_8).tolist() == [[0, 255, 90, 255]]
    of_4 = _png(4, 0, [bytes([0x05, 0x6F])], struct.pack(">H", 5))  # 0, 5, 6, 15 of 15
    assert _grey(of_4).tolist() == [[0, 255, 102, 255]]
    of_2 = _png(2, 0, [bytes([0b00_01_10_11])], struct.pack(">H", 1))
    assert _grey(of_2).tolist() == [[0, 255, 170, 255]]
    of_1 = _png(1, 0, [bytes([0b0101_0101])], struct.pack(">H", 1))
    assert _grey(of_1).tolist() == [[0, 255] * 4]
    of_16 = _png(16, 0, [struct.pack(">4H", 0, 1000, 30000, 65535)], struct.pack(">H", 1000))
    assert _grey(of_16).tolist() == [[0, 255, 117, 255]]
    row = struct.pack(">6H", 0x8000, 0, 0, 0, 0, 0)
    of_48 = _png(16, 2, [row], struct.pack(">3H", 0x8000, 0, 0))
    assert _grey(of_48).tolist() == [[255, 0]]
    colours = bytes([9, 9, 9, 10, 10, 10, 20, 20, 20])
    of_palette = _png(8, 3, [bytes([0, 1, 2, 0])], bytes([255, 0, 128]), colours)
    assert _grey(of_palette).tolist() == [[9, 255, 137, 9]]


def test_a_gif_with_a_transparent_colour_is_on_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([200, 0, 0, 0, 0, 0, 7, 7, 7])
    image.putpixel((0, 0), 0)
    grey_HW = _grey(file_of(image, "GIF", transparency=0))
    assert grey_HW[0, 0] == 255 and (grey_HW.ravel()[1:] == 0).all()


def test_premultiplied_colours_are_divided_again() -> None:
    plain = Image.fromarray(np.full((4, 4, 4), (200, 100, 50, 128), np.uint8))
    for mode in ("RGBa", "La"):
        stored = plain.convert("LA").convert("La") if mode == "La" else plain.convert("RGBa")
        straight = plain.convert("LA") if mode == "La" else plain
        assert _near(np.asarray(to_rgb(stored)).astype(int), np.asarray(to_rgb(straight)), 3)


def test_a_picture_that_shows_nothing_is_refused() -> None:
    for image in (Image.new("RGBA", (5, 5)), Image.new("LA", (5, 5))):
        with pytest.raises(BadUnit, match="nothing but transparent pixels"):
            read_picture(file_of(image))


# --- colours ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "format", "within"),
    [
        ("RGB", "PNG", 0),
        ("RGB", "BMP", 0),
        ("RGB", "TIFF", 0),
        ("RGB", "JPEG", 20),
        ("RGB", "WEBP", 30),
        ("CMYK", "JPEG", 20),
        ("CMYK", "TIFF", 1),
        ("YCbCr", "JPEG", 20),
        ("YCbCr", "TIFF", 3),
    ],
)
def test_colours_come_back_whatever_they_were_stored_as(
    mode: str, format: str, within: int
) -> None:
    image = photo() if mode == "RGB" else photo().convert(mode)
    quality = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    found = read_picture(file_of(image, format, **quality)).image
    assert found.mode == "RGB"
    assert _near(np.asarray(found).astype(int), np.asarray(photo()).astype(int), within)


@pytest.mark.parametrize(
    ("mode", "format"), [("P", "PNG"), ("P", "GIF"), ("1", "PNG"), ("L", "BMP"), ("LAB", "TIFF")]
)
def test_palettes_and_greys_are_read_through_their_colours(mode: str, format: str) -> None:
    image = photo().convert(mode)
    expected = image.convert("RGB")
    assert read_picture(file_of(image, format)).image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(format: str) -> None:
    frames = [Image.new("RGB", (12, 8), (v, v, v)) for v in (40, 200)]
    data = file_of(
        frames[0],
        format,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if format == "WEBP" else {}),
    )
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert _near(_grey(data), np.array(40), 2)


# --- turns -----------------------------------------------------------------------------------


# --- what is refused -------------------------------------------------------------------------


def _line(source: Path | bytes) -> str:
    with pytest.raises(BadUnit) as caught:
        read_picture(source)
    with pytest.raises(BadUnit):
        if isinstance(source, Path):
            with opened(source) as image:
                image.load()
        else:
            read_picture(source)
    text = str(caught.value)
    assert "expected a photo" in text and "found" in text and "\n" not in text
    assert len(text) < 500
    return text


def test_what_is_no_file_is_named_and_nothing_waits(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    link = tmp_path / "link.jpg"
    link.symlink_to(pipe)
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "words.jpg").write_text("no picture")
    for path, words in {
        pipe: "a pipe",
        link: "a pipe",
        Path("/dev/zero"): "a device",
        tmp_path: "a folder",
        tmp_path / "empty.jpg": "an empty file",
        tmp_path / "words.jpg": "10 bytes of no known format",
        tmp_path / "none.jpg": "no such file",
        tmp_path / "words.jpg" / "a.jpg": "no such file",
        loop: "cannot be opened",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / ("x" * 50_000_000): "File name too long",
        tmp_path / "a\0b.jpg": "no file can have",
    }.items():
        assert words in _line(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(file_of(photo()))
    path.chmod(0)
    assert "may not be read" in _line(path)


def test_too_many_open_files_are_no_fault_of_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(file_of(photo()))

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(OSError, match="Too many open files"):
        read_picture(path)


def test_a_picture_without_pixels_is_refused() -> None:
    head = struct.pack(">IIBBBBB", 0, 5, 8, 0, 0, 0, 0)
    data = _png(8, 0, [b"\0"], b"\0\0")
    at = data.index(b"IHDR") + 4
    data = data[:at] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + data[at + 17 :]
    assert "expected a photo, found" in _line(data)


def test_only_six_formats_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", run)
    monkeypatch.setattr("subprocess.check_call", run)
    for format in ("EPS", "PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000"):
        path = tmp_path / f"{format}.jpg"
        path.write_bytes(file_of(photo(), format))
        assert "no known format (JPEG, PNG" in _line(path)


def test_too_thin_and_too_large_are_told_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise AssertionError("decoded")

    thin, long = file_of(Image.new("RGB", (2, 900))), file_of(Image.new("L", (5000, 1)))
    edge = file_of(Image.new("L", (200, 1)))
    assert read_picture(edge).image.size == (200, 1)
    bomb = _png(1, 0, [bytes(1)], b"\0\0")
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    at = bomb.index(b"IHDR") + 4
    bomb = bomb[:at] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + bomb[at + 17 :]
    tall = struct.pack(">IIBBBBB", 10_000, 9_000, 1, 0, 0, 0, 0)
    large = bomb[:at] + tall + struct.pack(">I", zlib.crc32(b"IHDR" + tall)) + bomb[at + 17 :]
    monkeypatch.setattr(Image.Image, "load", load)
    assert "differ at most 200 times, found 2 x 900" in _line(thin)
    assert "found 5000 x 1" in _line(long)
    assert "at most 89,478,485 pixels, found 10000 x 9000" in _line(large)
    assert "decompression bomb" in _line(bomb)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_that_is_cut_off_is_refused(format: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = file_of(Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)), format)
    path = tmp_path / "cut.jpg"
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        assert path.name in _line(path)


@pytest.mark.parametrize("start", [0.05, 0.5, 0.9])
def test_a_png_whose_pixels_were_overwritten_is_refused(start: float) -> None:
    """Pillow shows the rest as black, without a word."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    whole = stream.getvalue()
    kept = int(len(whole) * start)
    with pytest.raises(BadUnit, match="checksum"):
        read_picture(whole[:kept] + bytes(len(whole) - kept))
    assert (np.asarray(read_picture(whole).image) == pixels).all()


def test_the_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(file_of(photo()))
    assert read_picture(path).image.tobytes() == photo().tobytes()
