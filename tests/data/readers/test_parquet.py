"""Rows of parquet files in any order, and images in their cells."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from kvfix.data.readers import parquet as module
from kvfix.data.readers.parquet import RowReader, decode_image, encoded_image, read_rows
from kvfix.data.units import BadUnit


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"n": i, "square": i * i, "text": "t" * i} for i in range(11)]
    return trees.parquet(tmp_path / "a.parquet", rows, group=4)


@pytest.mark.parametrize("first", [0, 3, 4, 9, 10, 11])
def test_rows_from_any_start(file: Path, first: int) -> None:
    rows = list(read_rows(file, required=("n",), optional=("text", "no"), first=first))
    assert [r.number for r in rows] == list(range(first, 11))
    assert all(r.cells == {"n": r.number, "text": "t" * r.number} for r in rows)


def test_a_reader_goes_through_each_file_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    real = module.read_rows

    def spy(path: Path, **options: object) -> object:
        starts.append((path.name, options["first"]))
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_rows", spy)
    other = trees.parquet(file.parent / "b.parquet", [{"square": -i} for i in range(5)])
    reader = RowReader(("square",))
    for i in range(5):  # two files in turn, rows twice
        assert reader.row(file, i) == reader.row(file, i) == {"square": i * i}
        assert reader.row(other, i) == {"square": -i}
    assert reader.row(file, 9) == {"square": 81}
    assert starts == [("a.parquet", 0), ("b.parquet", 0)]
    assert reader.row(file, 2) == {"square": 4}  # back: from its row group
    assert starts[2:] == [("a.parquet", 2)]
    with pytest.raises(ValueError, match="expected row 11, found fewer"):
        reader.row(file, 11)
    assert reader.row(file, 10) == {"square": 100}


def test_broken_files_and_columns(file: Path) -> None:
    with pytest.raises(ValueError, match=r"found no a, b among n, square, text"):
        next(read_rows(file, required=("n", "a", "b")))
    file.write_bytes(b"PAR1")
    with pytest.raises(
        ValueError, match=r"a\.parquet: expected a parquet file, found a broken one"
    ):
        next(read_rows(file, required=("n",)))
    file.unlink()
    with pytest.raises(ValueError, match="expected a parquet file"):
        RowReader(("n",)).row(file, 0)


def _encoded(image: Image.Image, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, "jpeg", **options)
    return data.getvalue()


def test_images_are_rgb_and_turned_as_exif_says() -> None:
    wide = Image.fromarray(np.zeros((8, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for data, size in ((_encoded(wide), (16, 8)), (_encoded(wide, exif=exif), (8, 16))):
        image = decode_image(data, "here")
        assert image.mode == "RGB" and image.size == size
    with pytest.raises(BadUnit, match="here: expected an image, found a broken one"):
        decode_image(_encoded(wide)[:60], "here")


def test_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _encoded(Image.new("L", (40, 40)))
    monkeypatch.setattr("kvfix.data.pictures.read.MAX_PIXELS", 1000)
    with pytest.raises(BadUnit, match="here: expected an image of at most 1,000 pixels"):
        decode_image(data, "here")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({"bytes": b"x", "path": None}, b"x"),
        (b"x", b"x"),
        ({"bytes": None, "path": "a.jpg"}, None),
        ({"bytes": b""}, None),
        (None, None),
        ("a.jpg", None),
    ],
)
def test_bytes_of_a_cell(cell: object, expected: bytes | None) -> None:
    assert encoded_image(cell) == expected
