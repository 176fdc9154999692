"""What one sample asks: images, or one video, and text around them."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image


class Prompt(NamedTuple):
    """One sample: `prefix`, then the images, then `text`, all in one user turn.

    With `fps` the images are the frames of one video, so many a second.
    """

    images: tuple[Image.Image, ...]
    text: str
    prefix: str | None = None
    fps: float | None = None
