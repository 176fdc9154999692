"""A term by which the values of a text point at what the text names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvfix.bounds import number
from kvfix.repair.batch import Batch
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head, TextProjection
from kvfix.repair.terms.mask import _labels, _none, _side_by_side, _targets
from kvfix.repair.terms.mean import Mean, by_image, masked_mean, mean_of_images
from kvfix.repair.terms.term import LayerTerm, Needs


def text_value_nce(
    similarity_SN: Tensor, share_N: Tensor, valid_N: Tensor, counts: Sequence[int]
) -> Mean:
    """InfoNCE of an expression's value against the patch values of its image, nats.

    Several positives stand outside the logarithm (SupCon's L_out, Khosla et al. 2020, eq. 2),
    weighted by how much of the mask each holds: all of the mask must be found, not its easiest
    cell. The least possible loss is the entropy of these weights, log n for n whole cells. Images
    whose mask is empty are left out. Similarities are over the temperature; shares and validity are
    those of `mask_bce`, and cells of validity 0 are neither positive nor negative.
    """
    similarity_SN = similarity_SN.float()
    means = []
    positive_N = (share_N * valid_N).to(similarity_SN.device, torch.float32)
    candidate_N = (valid_N > 0).to(similarity_SN.device)
    for similarity, positive, candidate in by_image(counts, similarity_SN, positive_N, candidate_N):
        log_all_S1 = similarity.masked_fill(~candidate, -torch.inf).logsumexp(1, keepdim=True)
        means.append(masked_mean(log_all_S1 - similarity, positive))
    return mean_of_images(means, like=similarity_SN)


@dataclass(frozen=True)
class TextValueTerm(LayerTerm):
    """InfoNCE: the value at an expression's last token finds the patches that it names."""

    temperature: float = number(0.07, above=0.01)  # to start with; learned
    shared: bool = False  # one projection for all layers

    def needs(self) -> Needs:
        """Values of the image and of the text's last token."""
        return super().needs() | Needs(text=True)

    def make_head(self, channels: int, seed: int) -> TextProjection:
        """Starts as the identity, so the seed moves nothing."""
        return TextProjection(
            channels, len(self.layers), shared=self.shared, temperature=self.temperature
        )

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Named masks that are not empty."""
        masks = (m for extras in batch.extras for m in extras.masks)
        return sum(m.named and bool((m.share_HW * m.valid_HW).any()) for m in masks)

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over masks that their sample's text names, nats."""
        assert isinstance(head, TextProjection)
        targets = [(sample, target) for sample, target in _targets(step) if target.named]
        if not targets:
            return _none(head)
        v_SNC, counts = _side_by_side(step, self.layers, targets)
        t_STC = torch.stack([step.text("value", self.layers, n) for n, _ in targets], dim=1)
        query_STC = head(t_STC)
        of_N = torch.repeat_interleave(torch.tensor(counts)).to(v_SNC.device)
        similarity_SN = (query_STC[:, of_N] * F.normalize(v_SNC.float(), dim=-1)).sum(-1)
        share_N, valid_N = _labels(targets, v_SNC.device)
        return text_value_nce(similarity_SN, share_N, valid_N, counts)
