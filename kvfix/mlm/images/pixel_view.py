"""The pixels that a vision tower sees, and where they lie in the original image."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PixelView:
    """The pixels a vision tower sees, and where they lie in the original image.

    Pixel coordinate x of the view is original pixel `left + x * scale_x`; y likewise.
    """

    height: int
    width: int
    scale_y: float = 1.0
    scale_x: float = 1.0
    top: float = 0.0
    left: float = 0.0

    @classmethod
    def of(cls, image_hw: tuple[int, int]) -> PixelView:
        """The original image."""
        return cls(height=image_hw[0], width=image_hw[1])

    def resized(self, height: int, width: int) -> PixelView:
        """Stretched to height x width."""
        scale_y = self.scale_y * self.height / height
        scale_x = self.scale_x * self.width / width
        return PixelView(height, width, scale_y, scale_x, self.top, self.left)

    def shortest_edge(self, edge: int) -> PixelView:
        """Resized so that the shorter side has `edge` pixels, the longer one rounded down."""
        short = min(self.height, self.width)
        return self.resized(int(edge * self.height / short), int(edge * self.width / short))

    def cut(self, top: int, left: int, height: int, width: int) -> PixelView:
        """A window of the view; negative or overhanging offsets are padding."""
        y, x = self.top + top * self.scale_y, self.left + left * self.scale_x
        return PixelView(height, width, self.scale_y, self.scale_x, y, x)

    def centre_crop(self, height: int, width: int) -> PixelView:
        """The processors' centre crop: odd borders lose the extra pixel at the bottom and right."""
        # Python floors, torchvision truncates: they differ where the crop is larger than the view.
        top = (
            (self.height - height) // 2 if height <= self.height else -((height - self.height) // 2)
        )
        left = (self.width - width) // 2 if width <= self.width else -((width - self.width) // 2)
        return self.cut(top, left, height, width)

    def padded_to_square(self) -> PixelView:
        """Padded along the shorter side, the odd pixel at the bottom or right."""
        side = max(self.height, self.width)
        return self.cut(-((side - self.height) // 2), -((side - self.width) // 2), side, side)

    def fitted(self, height: int, width: int) -> PixelView:
        """Resized to fit into height x width with its aspect ratio, then padded around."""
        scale_h, scale_w = height / self.height, width / self.width
        if scale_w < scale_h:
            inner = self.resized(min(math.ceil(self.height * scale_w), height), width)
        else:
            inner = self.resized(height, min(math.ceil(self.width * scale_h), width))
        return inner.cut(
            -((height - inner.height) // 2), -((width - inner.width) // 2), height, width
        )
