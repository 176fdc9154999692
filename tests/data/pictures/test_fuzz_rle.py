"""Run-length masks against pycocotools, and any text in their place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from kvfix.data.pictures.rle import check_rle, decode_rle, run_lengths

SIZES = st.tuples(st.integers(1, 30), st.integers(1, 30))
MASKS = SIZES.flatmap(lambda size: arrays(np.uint8, size, elements=st.integers(0, 1)))
TALL = st.integers(1, 5000).map(lambda n: np.ones((n, 1), np.uint8))
pytestmark = pytest.mark.filterwarnings(  # of pycocotools 2.0.11 under NumPy 2
    "ignore:__array__ implementation:DeprecationWarning"
)
TEXT = st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30)


@given(st.one_of(MASKS, TALL))
def test_what_pycocotools_writes_is_read_as_it_was(mask_HW: np.ndarray) -> None:
    written = coco.encode(np.asfortranarray(mask_HW))
    text = written["counts"].decode("ascii")
    runs = run_lengths(text)
    found_HW = decode_rle(mask_HW.shape, text)
    assert found_HW.dtype == np.uint8 and np.array_equal(found_HW, mask_HW)
    assert np.array_equal(decode_rle(mask_HW.shape, runs), mask_HW)
    again = coco.frPyObjects({"size": list(mask_HW.shape), "counts": runs}, *mask_HW.shape)
    assert np.array_equal(coco.decode(again), mask_HW)


@given(SIZES, st.one_of(TEXT, st.text(max_size=30)))
@example((3, 3), "")
@example((3, 3), "_" * 100)
@example((1, 1), "o" * 10_000)
@example((2, 2), "04\x1b[31m")
@example((2, 2), "0" * 100_000)
def test_any_text_is_a_mask_or_refused(size: tuple[int, int], text: str) -> None:
    try:
        found_HW = decode_rle(size, text)
    except ValueError as error:
        assert len(str(error)) < 300
        return
    assert found_HW.shape == size and set(np.unique(found_HW)) <= {0, 1}
    assert sum(check_rle(size, text)) == found_HW.size
    theirs = coco.decode({"size": list(size), "counts": text.encode("ascii")})
    assert np.array_equal(theirs, found_HW)  # whole runs: theirs reads no foreign memory


@given(
    SIZES,
    st.lists(
        st.one_of(st.integers(-2, 40), st.integers(), st.floats(), st.none(), st.booleans()),
        max_size=8,
    ),
)
@example((2, 2), [2**62, 2**62])
@example((2, 2), [10**30, 4 - 10**30])
def test_any_list_is_a_mask_or_refused(size: tuple[int, int], counts: list) -> None:
    try:
        found_HW = decode_rle(size, counts)
    except ValueError as error:
        assert len(str(error)) < 300
        return
    assert found_HW.shape == size
    assert found_HW.sum() == sum(counts[1::2])
