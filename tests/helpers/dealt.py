"""Readouts of views at hand, and their control: cells dealt anew."""

from collections.abc import Sequence

import torch

from kvfix.data.units import Question
from kvfix.eval.mcq.readouts import Marked, Readout, compared, read_out
from kvfix.eval.source import View


def readout(question: Question, views: Sequence[View], kind: str) -> Readout | None:
    """The readout of one question at every site of a kind, None where it has none."""
    asked = compared(question)
    return None if isinstance(asked, str) else read_out(question, Marked(list(views), asked), kind)


def deal_cells(marked: Marked, generator: torch.Generator) -> Marked:
    """The control: every cell of all images of the question, dealt anew over their grids.

    Nothing is left of which cell was where, nor of which image it came from, so a readout's
    accuracy is chance; all its other statistics stay. All sites and kinds are dealt alike.
    """
    counts = [view.layout.index_HW.numel() for view in marked.views]
    order_N = torch.randperm(sum(counts), generator=generator)
    dealt: list[dict[str, torch.Tensor]] = [{} for _ in marked.views]
    for kind in marked.views[0].features:
        features = [view.features[kind].flatten(1, 2) for view in marked.views]
        cells_SNC = torch.cat(features, dim=1)
        mixed = cells_SNC[:, order_N.to(cells_SNC.device)].split(counts, dim=1)
        for into, part_SNC, view in zip(dealt, mixed, marked.views, strict=True):
            into[kind] = part_SNC.unflatten(1, view.layout.grid_hw)
    views = [View(f, view.layout) for f, view in zip(dealt, marked.views, strict=True)]
    return marked._replace(views=views)
