"""Label images of any palette keep their labels; any damage to the file leaves the unit out."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from kvfix.data.files import read_labels
from kvfix.data.units import BadUnit

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))
LABELS = SIZES.flatmap(lambda size: arrays(np.uint8, size))
PALETTES = st.binary(min_size=3, max_size=768).map(lambda colours: colours[: len(colours) // 3 * 3])
# Of damaged TIFFs; kvfix itself filters by the module that warns.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
FORMATS = st.sampled_from(["PNG", "BMP", "TIFF"])


def indexed(labels_HW: np.ndarray, palette: bytes) -> Image.Image:
    image = Image.fromarray(labels_HW)
    colours = int(labels_HW.max()) + 1  # with fewer, Pillow packs labels into too few bits
    image.putpalette((palette * 256)[: 3 * max(colours, len(palette) // 3)])  # equal ones too
    return image


@given(LABELS, PALETTES, FORMATS, st.booleans())
def test_labels_are_palette_indices_whatever_the_colours(
    tmp_path_factory: pytest.TempPathFactory,
    labels_HW: np.ndarray,
    palette: bytes,
    format: str,
    clear: bool,
) -> None:
    path = tmp_path_factory.mktemp("labels") / f"mask.{format.lower()}"
    clear = clear and format == "PNG"
    image = indexed(labels_HW, palette)
    image.save(path, format, **({"transparency": 0, "optimize": False} if clear else {}))
    found_HW = read_labels(path)
    assert found_HW.dtype == np.uint8 and np.array_equal(found_HW, labels_HW)
    Image.fromarray(labels_HW).save(path, format)
    assert np.array_equal(read_labels(path), labels_HW)


@given(
    LABELS,
    PALETTES,
    FORMATS,
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=6),
    st.integers(0, 1000),
)
def test_a_damaged_file_is_labels_of_its_size_or_a_bad_unit(
    tmp_path_factory: pytest.TempPathFactory,
    labels_HW: np.ndarray,
    palette: bytes,
    format: str,
    changed: list[tuple[int, int]],
    kept: int,
) -> None:
    stream = io.BytesIO()
    indexed(labels_HW, palette).save(stream, format)
    content = bytearray(stream.getvalue())
    for place, value in changed:
        content[len(content) * place // 1000] = value
    path = tmp_path_factory.mktemp("labels") / "mask.png"
    path.write_bytes(bytes(content[: len(content) * kept // 1000]))
    try:
        found_HW = read_labels(path)
    except BadUnit as error:
        assert str(path) in str(error) and len(str(error)) < 500 + len(str(path))
        return
    assert found_HW.dtype == np.uint8 and found_HW.ndim == 2
    if not changed:
        assert kept == 1000 or np.array_equal(found_HW, labels_HW)


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"GIF89a"]),
)
def test_any_bytes_are_labels_or_a_bad_unit(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, head: bytes
) -> None:
    path = tmp_path_factory.mktemp("labels") / "mask.png"
    path.write_bytes(head + content)
    try:
        assert read_labels(path).ndim == 2
    except BadUnit as error:
        assert str(path) in str(error)


@given(SIZES, st.sampled_from(["1", "RGB", "RGBA", "LA", "I", "I;16", "F"]))
def test_other_modes_are_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], mode: str
) -> None:
    path = tmp_path_factory.mktemp("labels") / "mask.tiff"
    Image.new(mode, size).save(path)
    with pytest.raises(BadUnit, match="expected a mask of mode P"):
        read_labels(path)
