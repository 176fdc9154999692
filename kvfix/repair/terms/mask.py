"""A term by which values find what a mask covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvfix.bounds import number
from kvfix.repair.batch import Batch
from kvfix.repair.extras import MaskTarget
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head, MaskHead
from kvfix.repair.terms.mean import Mean, by_image, masked_mean, mean_of_images
from kvfix.repair.terms.term import LayerTerm


def mask_bce(logits_SN: Tensor, share_N: Tensor, valid_N: Tensor, counts: Sequence[int]) -> Mean:
    """Binary cross-entropy of foreground logits with soft labels, nats a cell.

    Of each cell, `share_N` in [0, 1] is foreground and `valid_N` counts (inside the image and not
    void). `counts` are the cells of each image; one without a valid one is left out.
    """
    target_SN = share_N.to(logits_SN.device, torch.float32).expand_as(logits_SN)
    bce_SN = F.binary_cross_entropy_with_logits(logits_SN.float(), target_SN, reduction="none")
    valid_N = valid_N.to(logits_SN.device)
    means = [masked_mean(bce, valid) for bce, valid in by_image(counts, bce_SN, valid_N)]
    return mean_of_images(means, like=bce_SN)


def mask_dice(logits_SN: Tensor, share_N: Tensor, valid_N: Tensor, counts: Sequence[int]) -> Mean:
    """Dice loss, in [0, 1], with squared areas in the denominator (V-Net, Milletari et al. 2016).

    With squares the loss is least where prediction and SOFT label agree; with plain sums it would
    push a half-covered cell to 0 or 1. One cell is added above and below: an empty mask is learnt
    as empty. The other arguments are those of `mask_bce`.
    """
    valid_N = valid_N.to(logits_SN.device, torch.float32)
    share_N = share_N.to(logits_SN.device, torch.float32)
    means = []
    for logits, share, valid in by_image(counts, logits_SN.float(), share_N, valid_N):
        p = logits.sigmoid()
        above_S = 2 * (valid * p * share).sum(1) + 1
        below_S = (valid * (p.square() + share.square())).sum(1) + 1
        means.append(masked_mean(1 - above_S / below_S, (valid.sum() > 0)))
    return mean_of_images(means, like=logits_SN)


@dataclass(frozen=True)
class MaskTerm(LayerTerm):
    """Linear mask head on image values: BCE + dice."""

    dice: float = number(1.0, least=0)  # weight of dice beside BCE
    # Kinds of foreground; a mask's `category` says which output learns it.
    outputs: int = number(1, least=1)
    shared: bool = False  # one head for all layers

    def make_head(self, channels: int, seed: int) -> MaskHead:
        """One logit a cell, layer and kind of foreground."""
        return MaskHead(
            *(channels, len(self.layers)),
            outputs=self.outputs,
            shared=self.shared,
            generator=torch.Generator().manual_seed(seed),
        )

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Masks with a head and a valid cell."""
        masks = (m for extras in batch.extras for m in extras.masks)
        return sum(m.category >= 0 and bool(m.valid_HW.any()) for m in masks)

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over masks; nats and dice added."""
        assert isinstance(head, MaskHead)
        targets = [(n, target) for n, target in _targets(step) if target.category >= 0]
        wrong = {target.category for _, target in targets} - set(range(self.outputs))
        if wrong:
            raise ValueError(
                f"expected mask categories 0..{self.outputs - 1}, found {sorted(wrong)}; set "
                "outputs of the mask term"
            )
        if not targets:
            return _none(head)
        v_SNC, counts = _side_by_side(step, self.layers, targets)
        category_N = torch.cat(
            [torch.full((n,), t.category) for n, (_, t) in zip(counts, targets, strict=True)]
        ).to(v_SNC.device)
        logits_SNO = head(v_SNC)
        at_SN1 = category_N[None, :, None].expand(len(v_SNC), -1, 1)
        logits_SN = logits_SNO.gather(-1, at_SN1)[..., 0]
        share_N, valid_N = _labels(targets, v_SNC.device)
        bce = mask_bce(logits_SN, share_N, valid_N, counts)
        dice = mask_dice(logits_SN, share_N, valid_N, counts)
        return Mean(bce.total + self.dice * dice.total, bce.weight)


def _targets(step: Step) -> list[tuple[int, MaskTarget]]:
    return [(n, target) for n, extras in enumerate(step.extras) for target in extras.masks]


def _side_by_side(
    step: Step, layers: Sequence[int], targets: list[tuple[int, MaskTarget]]
) -> tuple[Tensor, list[int]]:
    """Values of the targets' images as v_SNC, and how many cells each has."""
    images = [
        step.image("value", layers, sample, target.image).flatten(1, 2)
        for sample, target in targets
    ]
    for v_SNC, (sample, target) in zip(images, targets, strict=True):
        if v_SNC.shape[1] != target.share_HW.numel():
            raise ValueError(
                f"sample {sample}, image {target.image}: expected a mask on its grid of "
                f"{v_SNC.shape[1]} cells, found {tuple(target.share_HW.shape)}"
            )
    return torch.cat(images, dim=1), [v_SNC.shape[1] for v_SNC in images]


def _labels(targets: list[tuple[int, MaskTarget]], device: torch.device) -> tuple[Tensor, Tensor]:
    share_N = torch.cat([target.share_HW.flatten() for _, target in targets])
    valid_N = torch.cat([target.valid_HW.flatten() for _, target in targets])
    return share_N.to(device), valid_N.to(device)


def _none(head: Head) -> Mean:
    """A rank without such samples still runs the head."""
    zero = head.dummy()
    return Mean(zero, torch.zeros((), device=zero.device))
