"""Pictures as bytes, and their channels as numbers."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def file_of(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def photo() -> Image.Image:
    y, x = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([4 * x, 6 * y, 128 + 0 * x], axis=2).astype(np.uint8))
