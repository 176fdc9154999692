"""COCO run lengths against pycocotools, and texts that it decodes to whatever was in memory."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from kvfix.data.pictures.rle import decode_rle, run_lengths


@pytest.mark.parametrize("seed", range(20))
def test_equals_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 70, 2))
    smooth = rng.random((height, width)).cumsum(0) % rng.uniform(1, 30) < rng.uniform(0, 15)
    got = coco.encode(np.asfortranarray(smooth.astype(np.uint8)))
    mask_HW = decode_rle((height, width), got["counts"].decode())
    assert mask_HW.dtype == np.uint8 and mask_HW.flags.c_contiguous
    assert (mask_HW == smooth).all()


def test_long_runs_and_plain_lists() -> None:
    mask_HW = np.zeros((600, 500), np.uint8)
    mask_HW[:, 499] = 1
    counts = coco.encode(np.asfortranarray(mask_HW))["counts"].decode()
    assert run_lengths(counts) == [600 * 499, 600]
    assert (decode_rle((600, 500), [600 * 499, 600]) == mask_HW).all()
    assert decode_rle((2, 3), [0, 6]).all() and not decode_rle((2, 3), [6]).any()


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ("", "20 pixels, found 0"),
        ("0", "found 0"),
        ("54", "found 9"),
        ("04d0", "found"),
        ("z~", "run-length text"),
        ("0P", "cut off"),
        ("oooooooooooooooo", "run-length text"),
        ("0O", "0 or more"),
        ([10, 5], "found 15"),
        ([20.0], "whole numbers"),
        ([True] * 20, "whole numbers"),
    ],
)
def test_what_does_not_fill_the_mask_is_refused(counts: str | list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode_rle((4, 5), counts)
