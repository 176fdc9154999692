"""A term that keeps how values relate near the base's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvfix.bounds import number
from kvfix.repair.batch import Batch
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head
from kvfix.repair.terms.mean import Mean, sum_over_rows
from kvfix.repair.terms.term import Anchor, LayerTerm, Needs


def gram_anchor(
    v_SNC: Tensor, base_SNC: Tensor, counts: Sequence[int], *, chunk: int = 256
) -> Mean:
    """Squared change of the cell-by-cell cosine Gram matrix of an image's values, in [0, 4].

    It holds which parts of an image look alike and leaves the values free to turn as a whole (Gram
    anchoring, as in DINOv3 and LaVer, arXiv 2512.06281, there on a teacher's patches). Cells of all
    images stand side by side, `counts` of each; pairs are formed inside an image only, `chunk` rows
    of a matrix at a time.
    """
    if v_SNC.shape != base_SNC.shape:
        raise ValueError(
            f"expected values at the same cells, found {tuple(v_SNC.shape)} tuned and "
            f"{tuple(base_SNC.shape)} base"
        )
    unit_SNC = F.normalize(v_SNC.float(), dim=-1)
    still_SNC = F.normalize(base_SNC.detach().float(), dim=-1)
    total = unit_SNC.sum() * 0  # the graph, when there is no image
    for unit, still in zip(unit_SNC.split(counts, 1), still_SNC.split(counts, 1), strict=True):
        changed = sum_over_rows(
            _gram_sum(unit, still), (unit.movedim(1, 0), still.movedim(1, 0)), chunk=chunk
        )
        total = total + changed / (unit.shape[0] * unit.shape[1] ** 2)
    return Mean(total, total.new_tensor(float(len(counts))).detach())


def _gram_sum(unit_SNC: Tensor, still_SNC: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Of some rows of an image with all of its cells."""

    def total(rows_MSC: Tensor, still_MSC: Tensor) -> Tensor:
        cos_SMN = rows_MSC.movedim(0, 1) @ unit_SNC.mT
        base_SMN = still_MSC.movedim(0, 1) @ still_SNC.mT
        return (cos_SMN - base_SMN).square().sum()

    return total


@dataclass(frozen=True)
class GramTerm(Anchor, LayerTerm):
    """Cell-by-cell similarity of an image's values, held to the base model's."""

    chunk: int = number(256, least=1)  # rows of the similarity matrix at a time

    def needs(self) -> Needs:
        """Values of both models."""
        return super().needs() | Needs(base_sites=frozenset({"value"}))

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Images that are no stand-ins."""
        return batch.n_images

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over images, layers and pairs of cells of the squared change of cosine."""
        where = step.real_images()
        if not where:
            return step.zero("value", self.layers)
        tuned, base = (
            [take("value", self.layers, b, i).flatten(1, 2) for b, i in where]
            for take in (step.image, step.base_image)
        )
        counts = [v_SNC.shape[1] for v_SNC in tuned]
        return gram_anchor(torch.cat(tuned, 1), torch.cat(base, 1), counts, chunk=self.chunk)
