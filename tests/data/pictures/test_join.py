"""Pictures side by side."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from PIL import Image

from kvfix.data.pictures.join import concatenate


def test_joined_images_are_centred_on_black_with_ten_pixels_between() -> None:
    images = [Image.new("RGB", size, (200, 100, 50)) for size in ((30, 20), (40, 11), (5, 17))]
    joined_HW3 = np.asarray(concatenate(images))
    assert joined_HW3.shape == (20, 30 + 10 + 40 + 10 + 5, 3)
    expected_HW = np.zeros((20, 95), bool)
    expected_HW[:, :30] = True
    expected_HW[4:15, 40:80] = True  # (20 - 11) // 2 = 4
    expected_HW[1:18, 90:] = True
    assert np.array_equal(joined_HW3.any(-1), expected_HW)
    assert (joined_HW3[expected_HW] == (200, 100, 50)).all()
    [one] = [tiny.photo(9, 8)]
    assert np.array_equal(np.asarray(concatenate([one])), np.asarray(one))
    with pytest.raises(ValueError, match="at least one image, found none"):
        concatenate([])
