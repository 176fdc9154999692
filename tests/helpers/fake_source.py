"""A source of hand-made features: no model, and every image that is read is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from grids import grid_layout
from PIL import Image

from kvfix.eval.site import Site
from kvfix.eval.source import View

LAYERS = 3
GRID = 16
TEXT_KINDS = ("value",)


class FakeSource:
    """Mean colours of a 16 x 16 grid; value layer l sees them through noise of size `noise[l]`."""

    kinds = ("value",)

    def __init__(
        self,
        *,
        noise: Sequence[float] = (0.5, 0.0, 1.0),
        stop_after: int | None = None,
        apart: bool = False,  # other noise on every image
    ):
        self.noise, self.stop_after, self.apart = tuple(noise), stop_after, apart
        self.seen = 0

    def sites(self, kind: str) -> list[Site]:
        if kind == "value":
            return [Site("value", layer) for layer in range(LAYERS)]
        return [Site(kind)]

    def views(self, images: Sequence[Image.Image]) -> Iterator[View]:
        for image in images:
            yield self._view(image)

    def clip(self, frames: Sequence[Image.Image], *, fps: float) -> Iterator[View]:
        return self.views(frames)

    def spoken(self, image: Image.Image, text: str) -> tuple[View, dict[str, torch.Tensor]]:
        view = self._view(image)
        return view, {kind: view.features[kind].mean((1, 2)) for kind in TEXT_KINDS}

    def _view(self, image: Image.Image) -> View:
        if self.seen == self.stop_after:
            raise KeyboardInterrupt
        self.seen += 1
        small = np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX), np.float32) / 255
        f_1HWC = torch.from_numpy(small)[None]
        generator = torch.Generator().manual_seed(self.seen if self.apart else 0)
        value = torch.cat(
            [f_1HWC + s * torch.randn(f_1HWC.shape, generator=generator) for s in self.noise]
        )
        features = {"vision": f_1HWC, "projector": f_1HWC + 1, "value": value}
        return View(features, grid_layout((image.height, image.width), (GRID, GRID)))
