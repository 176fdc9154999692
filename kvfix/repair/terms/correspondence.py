"""A term by which matching points have matching values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvfix.bounds import number
from kvfix.eval.grid import sample_cells
from kvfix.repair.batch import Batch
from kvfix.repair.extras import Matches
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head, Temperature
from kvfix.repair.terms.mask import _none
from kvfix.repair.terms.mean import Mean, masked_mean, pooled
from kvfix.repair.terms.term import LayerTerm


def correspondence_nce(
    source_SKC: Tensor,
    target_SKC: Tensor,
    cells_SNC: Tensor,
    near_KN: Tensor,
    valid_K: Tensor,
) -> Mean:
    """InfoNCE between matched points of two images, nats a point.

    Features are of unit length, those of the source over the temperature. The positives are the
    target at the matching points, the negatives all of its cells but those (`near_KN`) that a
    positive is interpolated from; points count that are seen in both images.
    """
    source_SKC, target_SKC = source_SKC.float(), target_SKC.float()
    positive_SK = (source_SKC * target_SKC).sum(-1)
    negative_SKN = torch.einsum("skc,snc->skn", source_SKC, cells_SNC.float())
    negative_SKN = negative_SKN.masked_fill(near_KN.to(negative_SKN.device), -torch.inf)
    together = torch.cat((positive_SK[..., None], negative_SKN), dim=-1)
    loss_K = (together.logsumexp(-1) - positive_SK).mean(0)
    return masked_mean(loss_K, valid_K.to(loss_K.device))


@dataclass(frozen=True)
class CorrespondenceTerm(LayerTerm):
    """InfoNCE between values at matched points of two images, both ways."""

    temperature: float = number(0.07, above=0.01)  # to start with; learned

    def make_head(self, channels: int, seed: int) -> Temperature:
        """The temperature alone."""
        return Temperature(self.temperature)

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Matched points, once a direction."""
        return 2 * sum(int(m.valid_K.sum()) for extras in batch.extras for m in extras.matches)

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over points, each counted once a direction, nats."""
        assert isinstance(head, Temperature)
        ways = [
            way
            for sample, extras in enumerate(step.extras)
            for matches in extras.matches
            for way in self._both_ways(step, sample, matches)
        ]
        if not ways:
            return _none(head)
        # All points in one call of the head.
        warm_SMC = head(torch.cat([way[0] for way in ways], dim=1))
        sources = warm_SMC.split([way[0].shape[1] for way in ways], dim=1)
        return pooled(
            [
                correspondence_nce(source, *way[1:])
                for source, way in zip(sources, ways, strict=True)
            ]
        )

    def _both_ways(
        self, step: Step, sample: int, matches: Matches
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Arguments of `correspondence_nce`, the source still without the temperature."""
        images = [step.image("value", self.layers, sample, image) for image in matches.images]
        points = [
            F.normalize(sample_cells(f_SHWC, rc_K2), dim=-1)
            for f_SHWC, rc_K2 in zip(images, matches.rc_K2, strict=True)
        ]
        return [
            (
                points[source],
                points[target],
                F.normalize(images[target].flatten(1, 2).float(), dim=-1),
                near_cells(
                    matches.rc_K2[target], (images[target].shape[1], images[target].shape[2])
                ),
                matches.valid_K,
            )
            for source, target in ((0, 1), (1, 0))
        ]


def near_cells(rc_K2: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Cells that a bilinear sample at each point is made of, bool near_KN in row-major order."""
    limit = torch.tensor([grid_hw[0] - 1, grid_hw[1] - 1], dtype=rc_K2.dtype)
    rc_K2 = rc_K2.cpu().clamp(min=torch.zeros(2, dtype=rc_K2.dtype), max=limit)
    rows_KH = (rc_K2[:, :1] - torch.arange(grid_hw[0])).abs() < 1
    cols_KW = (rc_K2[:, 1:] - torch.arange(grid_hw[1])).abs() < 1
    return (rows_KH[:, :, None] & cols_KW[:, None]).flatten(1)
