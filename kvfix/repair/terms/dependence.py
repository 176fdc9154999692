"""A term that makes chosen keys depend on the image again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfix.bounds import number
from kvfix.mlm.load import Encoded
from kvfix.repair.batch import Batch
from kvfix.repair.extras import Extras
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head
from kvfix.repair.terms.mean import Mean
from kvfix.repair.terms.term import LayerTerm, Needs, _given


def input_dependence(k_IMD: Tensor, *, earlier_JMD: Tensor | None = None) -> Tensor:
    """Differentiable r of each key, float32, 1 and more where keys share nothing.

    Keys are pre-RoPE, the bias of `k_proj` subtracted; M may be any dimensions. Earlier ones are of
    J other images, of the same weights, without a graph; None needs I >= 2. The gradient is scaled
    by all images over those of this micro-batch: micro-batches that each give theirs come, in the
    mean, to that of one batch.
    """
    all_NMD = k_IMD.float()
    if earlier_JMD is not None:
        all_NMD = torch.cat((earlier_JMD.float(), all_NMD))
    if len(all_NMD) < 2:
        raise ValueError("expected keys of at least two images, found 1; give earlier ones")
    # A key of length 0 has no direction: r = 0 there, without a NaN in the gradient.
    length_M = all_NMD.square().sum(-1).mean(0).clamp(min=1e-12)
    r_M = all_NMD.var(0, unbiased=True).sum(-1) / length_M
    known_M = r_M.detach()
    return known_M + (r_M - known_M) * (len(all_NMD) / len(k_IMD))


def dependence_hinge(r_M: Tensor, *, floor: float) -> Tensor:
    """max(0, ln(floor / r)), mean over keys, nats; the floor is in (0, 1], r counts as 1e-8 at
    least.
    """
    return (math.log(floor) - r_M.clamp(min=1e-8).log()).clamp(min=0).mean()


@dataclass(frozen=True)
class DependenceTerm(LayerTerm):
    """Hinge that raises r of the chosen keys: they shall depend on the image again.

    The FIRST image of a prompt counts if it is of the calibrated size (as many tokens as the mask
    of keys): its keys depend on nothing before it. A second one is read after the first, which
    moves its keys. The images of earlier micro-batches of the same step count in, too; the first
    one of a step, if it is alone in its micro-batch, counts for nothing.
    """

    # R that a key should reach, in (0, 1]: the diagnosis's tau (at most 0.1) or a little more.
    # Language models add one large constant to all image keys, so r is small for most.
    floor: float = number(0.1, above=0, most=1)

    site: ClassVar[str] = "key"

    def needs(self) -> Needs:
        """Pre-RoPE keys, and which of them are meant."""
        return super().needs() | Needs(agnostic=True)

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """First images of the calibrated size, the first of a step too."""
        return len(_first_images(batch.encoded, batch.extras, _given(keys_SHV)))

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over images of the mean over chosen keys of ln(floor / r), where r is below."""
        keys_SHV = _given(step.agnostic_SHV)
        where = _first_images(step.encoded, step.extras, keys_SHV)
        if not where:
            return step.zero(self.site, self.layers)
        cells_N = step.encoded.images[where[0]][0].layout.index_HW.flatten()
        chosen_SHN = keys_SHV[list(self.layers)][..., cells_N.to(keys_SHV.device)]
        k_ISNC = torch.stack(
            [step.image(self.site, self.layers, b, 0).flatten(1, 2) for b in where]
        )
        k_IMD = self._chosen(step, k_ISNC, chosen_SHN.to(k_ISNC.device))
        earlier_JMD = step.earlier.k_IMD
        step.earlier.observe(k_IMD)
        alone = len(where) == 1 and earlier_JMD is None
        if alone or not chosen_SHN.any():
            return step.zero(self.site, self.layers)
        r_M = input_dependence(k_IMD, earlier_JMD=earlier_JMD)
        hinge = dependence_hinge(r_M, floor=self.floor)
        return Mean(hinge * len(where), hinge.new_tensor(float(len(where))))

    def _chosen(self, step: Step, k_ISNC: Tensor, chosen_SHN: Tensor) -> Tensor:
        """k_IMD of the chosen keys, without the constant that the bias adds to all."""
        missing = [layer for layer in self.layers if layer not in step.key_bias]
        if missing:
            raise ValueError(
                f"expected the bias of k_proj of layer {missing[0]} (or None), found nothing; see "
                "key_biases"
            )
        heads = chosen_SHN.shape[1]
        k_ISHND = k_ISNC.unflatten(-1, (heads, -1)).transpose(2, 3)
        at_M = chosen_SHN.nonzero(as_tuple=True)
        k_IMD = k_ISHND[:, *at_M].float()
        biases = [step.key_bias[layer] for layer in self.layers]
        none = k_IMD.new_zeros(k_ISNC.shape[-1])
        bias_SC = torch.stack([none if b is None else b.to(k_IMD) for b in biases])
        return k_IMD - bias_SC.unflatten(-1, (heads, -1))[at_M[0], at_M[1]]


def _first_images(encoded: Encoded, extras: Sequence[Extras], keys_SHV: Tensor) -> list[int]:
    """Samples whose first image is real and of the calibrated size."""
    return [
        sample
        for sample, (spans, of) in enumerate(zip(encoded.images, extras, strict=True))
        if not of.stand_in and spans[0].layout.n_tokens == keys_SHV.shape[-1]
    ]
