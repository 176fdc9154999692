"""Pictures side by side, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

MARGIN = 10  # black pixels between two of them


def concatenate(images: Sequence[Image.Image]) -> Image.Image:
    """Images side by side on black, vertically centred, `MARGIN` apart; as high as the highest.

    It is BLINK's official `concat_images_horizontally_with_margin`.
    """
    if not images:
        raise ValueError("expected at least one image, found none")
    height = max(image.height for image in images)
    width = sum(image.width for image in images) + MARGIN * (len(images) - 1)
    joined = Image.new("RGB", (width, height))
    x = 0
    for image in images:
        joined.paste(image, (x, (height - image.height) // 2))
        x += image.width + MARGIN
    return joined
