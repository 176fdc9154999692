"""The few-shot probe of all value layers at once, beside scikit-learn layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.peers import peers
from benchmarks.rows.inputs import IMAGE, SMALLEST, features, first_unit, layout_of, nano
from benchmarks.turns import Asked, Contest, Goal
from kvfix.eval.grid import to_grid, to_pixels
from kvfix.eval.metrics import overlap
from kvfix.eval.probes.logistic import fit_logistic, fit_standardiser
from kvfix.eval.source import MlmSource
from kvfix.mlm.layout import Layout

PEER = "scikit-learn"
L2 = 1e-3
WHY_SMALL = "hundreds of small steps, of which no function has a sixth"
WHY = (
    "nearly half of ours are 22 products that read all features from "
    "memory, a fifth is standardising them; scikit-learn evaluates each layer about nine times"
)


def compared(asked: Asked) -> Iterator[Contest]:
    """One episode of five support images and a query, at the nano's size and at a real model's."""
    unit = first_unit("foreground_segmentation")
    images = [*unit.support, unit.query]
    views = list(MlmSource(nano()).views(images))
    values = [view.features["value"].float() for view in views]
    layouts = [view.layout for view in views]
    yield from _contest(asked, "the nano's", unit, values, layouts, WHY_SMALL)
    size = SMALLEST if asked.tiny else IMAGE
    layouts = [layout_of(image, size.grid_hw) for image in images]
    few = asked._replace(rounds=min(asked.rounds, 3))
    values = features(images, size, [*unit.support_masks, unit.query_mask])
    yield from _contest(few, str(size), unit, values, layouts, WHY)


def _contest(
    asked: Asked,
    size: str,
    unit,
    values: list[torch.Tensor],
    layouts: Sequence[Layout],
    why: str,
) -> Iterator[Contest]:
    x_SNC = torch.cat([value.flatten(1, 2) for value in values[:-1]], dim=1)
    query_SNC = values[-1].flatten(1, 2)
    grids = [to_grid(m, at) for m, at in zip(unit.support_masks, layouts[:-1], strict=True)]
    share_N = torch.cat([grid.share_HW.flatten() for grid in grids])
    valid_N = torch.cat([grid.valid_HW.flatten() for grid in grids])
    last: dict[str, torch.Tensor] = {}

    def ours() -> None:
        standardise = fit_standardiser(x_SNC)
        fit = fit_logistic(standardise(x_SNC), share_N, weight_N=valid_N, l2=L2)
        logit_SN = torch.bmm(standardise(query_SNC), fit.weight_SC[..., None])[..., 0]
        last["logits"] = logit_SN + fit.bias_S[:, None]

    def iou(logit_SN: torch.Tensor) -> float:
        maps = to_pixels(logit_SN.view(-1, *layouts[-1].grid_hw), layouts[-1], outside=-1.0)
        counts = [overlap((m > 0).numpy(), unit.query_mask) for m in maps]
        return float(np.mean([c.inter / c.union for c in counts]))

    arrays = {"x": x_SNC, "query": query_SNC, "share": share_N, "valid": valid_N}
    given = {name: value.numpy() for name, value in arrays.items()}
    with peers(asked, {PEER: "sklearn_logistic.py"}, **given, l2=np.array(L2)) as found:

        def same(way: str) -> str:
            theirs = torch.tensor(found.by_name[way].answer["logits"])
            return f"mIoU {iou(last['logits']):.3f} and {iou(theirs):.3f}"

        yield Contest(
            f"few-shot segmentation, {size}",
            ours,
            found.by_name,
            {PEER: Goal(10)},
            asked.rounds,
            same,
            found.missing,
            {PEER: why},
        )
