"""Labels of a clip through all value layers at once, beside DINO's recipe layer by layer.

Shapes: S sites, H x W grid cells, C channels, L labels, Q target cells, P source cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from benchmarks.rows.inputs import CLIP, SMALLEST, features, first_unit, layout_of, nano
from benchmarks.turns import Asked, Contest, Goal
from kvfix.eval.probes.correspondence import object_shares
from kvfix.eval.probes.propagation import Propagator, scaled_window
from kvfix.eval.source import MlmSource

BESIDE = "DINO's recipe, layer by layer"
WHY = (
    "three quarters of ours are products of features in bands of rows, about half as many as the "
    "recipe's; smaller tiles would need fewer, and cost more in copies"
)
WHY_SMALL = (
    "on 8 x 8 cells both sides form all affinities; ours saves calls alone, one for 8 layers"
)


def compared(asked: Asked) -> Iterator[Contest]:
    """The clip's frames but the last, at the nano's size and on the grid of 480 x 854 pixels."""
    unit = first_unit("temporal_correspondence")
    views = list(MlmSource(nano()).views(unit.frames[:-1]))
    mask = np.asarray(unit.masks[0])
    objects = int(mask[mask < 255].max())
    frames = [view.features["value"].float() for view in views]
    labels_LHW = object_shares(mask, views[0].layout, objects)
    yield _contest("the nano's", frames, labels_LHW, asked.rounds, WHY_SMALL)
    size = SMALLEST if asked.tiny else CLIP
    labels_LHW = object_shares(mask, layout_of(unit.frames[0], size.grid_hw), objects)
    frames = features(unit.frames[:-1], size)
    yield _contest(str(size), frames, labels_LHW, min(asked.rounds, 2), WHY)


def _contest(
    size: str, frames: list[torch.Tensor], labels_LHW: torch.Tensor, rounds: int, why: str
) -> Contest:
    last: dict[str, torch.Tensor] = {}

    def ours() -> None:
        propagator = Propagator(frames[0], labels_LHW)
        for frame in frames[1:]:
            last["kvfix"] = propagator.step(frame)

    def by_layer() -> None:
        layers = range(len(frames[0]))
        last["DINO"] = torch.stack([_dino([f[s] for f in frames], labels_LHW) for s in layers])

    return Contest(
        f"label propagation, {len(frames)} frames, {size}",
        ours,
        {BESIDE: by_layer},
        {BESIDE: Goal(5)},
        rounds,
        lambda _: f"labels within {float((last['kvfix'] - last['DINO']).abs().max()):.0e}",
        why={BESIDE: why},
    )


def _dino(frames_HWC: list[torch.Tensor], labels_LHW: torch.Tensor) -> torch.Tensor:
    """Caron et al. (2104.14294), video segmentation: one layer, one context frame at a time."""
    rows, cols, _ = frames_HWC[0].shape
    window = scaled_window((rows, cols))
    at = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
    far = (at[:, None] - at).abs() > torch.tensor([window.rows, window.columns])
    far_QP = far.any(2)
    unit = [functional.normalize(f.flatten(0, 1), dim=1) for f in frames_HWC]
    soft = [labels_LHW.flatten(1)]
    for t in range(1, len(unit)):
        context = [0, *range(max(1, t - 7), t)]
        affinity = torch.cat(
            [(unit[t] @ unit[c].T / 0.1).exp().masked_fill(far_QP, 0) for c in context], dim=1
        )
        least = affinity.topk(5, dim=1).values[:, -1:]
        affinity = affinity.masked_fill(affinity < least, 0)
        affinity = affinity / affinity.sum(1, keepdim=True)
        soft.append(torch.cat([soft[c] for c in context], dim=1) @ affinity.T)
    return soft[-1].view(-1, rows, cols)
