"""What is drawn on an image stands where the numbers say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kvfix.report.pictures import overlays


def at(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """One RGBA pixel."""
    pixel = image.convert("RGBA").getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


def test_mask_overlay_by_hand() -> None:
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    predicted, truth = np.zeros((4, 4), dtype=bool), np.zeros((4, 4), dtype=np.uint8)
    predicted[:2] = True
    truth[1:3, 1:3] = 1
    truth[3, 3] = 255
    out = np.asarray(overlays.mask_overlay(image, predicted, truth, min_side=40))
    assert out.shape == (40, 40, 3)
    tinted = [round(0.45 * 100 + 0.55 * c) for c in overlays.TINT]
    assert out[5, 5].tolist() == tinted  # predicted, not true
    assert out[15, 15].tolist() == tinted  # predicted and true, inside of the outline
    assert out[19, 5].tolist() == list(overlays.TINT)  # the edge of the prediction
    assert out[25, 15].tolist() == [100, 100, 100]  # missed: no tint
    assert out[35, 5].tolist() == [100, 100, 100]  # ground
    assert out[35, 35].tolist() == [round(0.3 * 100 + 0.7 * 127)] * 3  # void
    assert out[10, 15].tolist() == list(overlays.LIGHT) == out[11, 15].tolist()
    assert out[9, 15].tolist() == list(overlays.DARK) == out[8, 15].tolist()
    assert out[7, 15].tolist() == tinted
    with pytest.raises(ValueError, match=r"truth: expected the image's \(4, 4\), got \(4, 5\)"):
        overlays.mask_overlay(image, predicted, np.zeros((4, 5), dtype=np.uint8))


def test_enlarging_invents_no_colour() -> None:
    image = Image.fromarray(np.array([[[0] * 3, [200] * 3]] * 2, dtype=np.uint8))
    nothing = np.zeros((2, 2), dtype=np.uint8)
    out = np.asarray(overlays.mask_overlay(image, nothing > 0, nothing, min_side=20))
    assert np.unique(out).tolist() == [0, 200]


def test_match_overlay_by_hand() -> None:
    image = Image.new("RGB", (32, 32), (50, 50, 50))
    source = np.array([[16.0, 4.0], [16.0, 20.0]])
    predicted = np.array([[16.0, 4.0], [16.0, 20.0]])
    truth = np.array([[16.0, 4.0], [16.0, 28.0]])
    out = overlays.match_overlay(
        image, image, source, predicted, truth, np.array([True, False]), min_side=320
    )
    assert out.size == (320 + 8 + 320, 320)
    # Pixel (16, 4) of the source is the block around (164.5, 44.5); the lines run level.
    assert at(out, 250, 44) == (*overlays.RIGHT, 255)
    assert at(out, 250, 204) == (*overlays.WRONG, 255)
    assert at(out, 164, 44)[:3] == overlays.RIGHT
    assert at(out, 328 + 164, 44)[:3] == overlays.RIGHT  # a disc
    assert at(out, 328 + 164 + 3, 204 + 3)[:3] == overlays.WRONG  # an arm of the cross
    assert at(out, 328 + 164, 245) == (*overlays.LIGHT, 255)  # on to the truth
    assert at(out, 328 + 164 - 5, 284) == (*overlays.LIGHT, 255)  # its ring
    assert at(out, 324, 10)[3] == 0  # the gap
    with pytest.raises(ValueError, match="one"):
        overlays.match_overlay(image, image, source, predicted, truth, np.array([True]))


def test_clip_overlay_shows_first_to_last_frame() -> None:
    frames = [Image.new("RGB", (8, 8), (10 * t, 0, 0)) for t in range(9)]
    labels = [np.full((8, 8), 2 if t == 4 else 0, dtype=np.uint8) for t in range(9)]
    out = np.asarray(overlays.clip_overlay(frames, labels, min_side=16))
    assert out.shape == (16, 5 * 16 + 4 * 4, 4)
    reds = [int(out[8, 8 + 20 * i, 0]) for i in range(5)]
    ground = [round(0.5 * 10 * t + 0.5 * 10 * t / 3) for t in (0, 2, 6, 8)]
    assert [reds[0], reds[1], reds[3], reds[4]] == pytest.approx(ground, abs=1)
    tint = [0.45 * c + 0.55 * o for c, o in zip((40, 0, 0), overlays.OBJECTS[1], strict=True)]
    assert out[8, 48, :3].tolist() == pytest.approx(tint, abs=1)
    with pytest.raises(ValueError, match="as many masks as frames"):
        overlays.clip_overlay(frames, labels[:3])
