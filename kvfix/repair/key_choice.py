"""Which image keys a repair suppresses: those that the diagnosis calls input-agnostic.

Shapes: S layers, H KV heads, V image tokens, P cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kvfix.bounds import check_numbers, number
from kvfix.data.training.examples import Examples
from kvfix.diagnose.keys.calibration import ALPHA, detect, lowest_keys
from kvfix.diagnose.keys.statistics import stream_keys, to_square
from kvfix.mlm.image_keys import on_tokens, random_keys
from kvfix.mlm.load import Mlm


@dataclass(frozen=True)
class KeyOptions:
    """How keys are chosen."""

    # Training images that the statistics are made of; at least 64.
    images: int = number(64, least=64)
    side: int = number(448, least=1)  # pixels of the square that they are cut to
    # False-positive rate that the bound on r is calibrated to.
    alpha: float = number(ALPHA, above=0, below=1)
    # Share of the keys taken where none is input-agnostic; 0: stop then.
    lowest: float = number(0.05, least=0, below=1)
    random: bool = False  # take as many random keys a layer and head instead: the control

    def __post_init__(self) -> None:
        check_numbers(self)


class ChosenKeys(NamedTuple):
    """Keys to suppress."""

    keys_SHV: Tensor  # bool over layers, KV heads and tokens of an image of the calibrated size
    n_cells: int  # cells of such an image's grid
    tau: float  # bound on r
    agnostic: float  # share of keys below it
    what: str  # in words

    def said(self) -> list[str]:
        """What a training tells of them before it begins."""
        return [
            f"keys: {self.what}; {self.agnostic:.2%} of all keys are input-agnostic "
            f"(r < {self.tau:.4f})"
        ]


def choose_keys(mlm: Mlm, examples: Examples, options: KeyOptions, *, seed: int) -> ChosenKeys:
    """Measure the keys of the model as it stands, on training images; alike on every rank.

    Too few images, or no agnostic key where `lowest` is 0, are a ValueError.
    """
    images = list(_images(examples, options.images))
    if len(images) < options.images:
        raise ValueError(
            f"expected {options.images} training examples with an image to measure keys on, found "
            f"{len(images)}; lower keys.images (64 at least) or give more data"
        )
    side = min(options.side, *(min(image.size) for image in images))
    stats = stream_keys(mlm, (to_square(image, side) for image in images))
    found = detect(stats.groups, alpha=options.alpha, seed=seed)
    agnostic, what = found.agnostic_LHP, "input-agnostic keys"
    if not agnostic.any():
        if options.lowest == 0:
            raise ValueError(
                f"expected input-agnostic keys to suppress, found none below r = "
                f"{found.calibration.tau:.4f}; this model needs no such repair (keys.lowest=0.05 "
                "takes the lowest 5 % all the same)"
            )
        agnostic = lowest_keys(found.r_LHP, options.lowest)
        what = f"the {options.lowest:.0%} of keys with the lowest r (none is input-agnostic)"
    cells_SHHW = torch.from_numpy(np.ascontiguousarray(agnostic)).unflatten(
        -1, stats.layout.grid_hw
    )
    keys = on_tokens(cells_SHHW, stats.layout)
    if options.random:
        among = on_tokens(torch.ones(stats.layout.grid_hw, dtype=torch.bool), stats.layout)
        drawn = random_keys(keys, torch.Generator().manual_seed(seed), among=among)
        assert isinstance(drawn, Tensor)
        keys = drawn
        what = f"as many random keys as {what}"
    share = float(found.agnostic_LHP.mean())
    return ChosenKeys(keys, cells_SHHW[0, 0].numel(), found.calibration.tau, share, what)


def _images(examples: Examples, n: int) -> Iterable[Image.Image]:
    for index in range(len(examples)):
        if n == 0:
            return
        images = examples[index].images
        if images:
            n -= 1
            yield images[0]
