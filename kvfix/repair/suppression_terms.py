"""Terms against input-agnostic keys.

Shapes: I images, S layers, H KV heads, V tokens of an image, N cells, D channels of a head, L
positions, Q query heads, T text queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfix.bounds import number
from kvfix.models import Encoded
from kvfix.repair.batch import Batch
from kvfix.repair.losses import Mean, masked_mean, pooled
from kvfix.repair.queries import text_queries
from kvfix.repair.step import Extras, Step
from kvfix.repair.suppression import (
    attention_mass,
    dependence_hinge,
    input_dependence,
    mass_hinge,
)
from kvfix.repair.term import Head, LayerTerm, Needs


@dataclass(frozen=True)
class DependenceTerm(LayerTerm):
    """Hinge that raises r of the chosen keys: they shall depend on the image again.

    The FIRST image of a prompt counts if it is of the calibrated size (as many tokens as the mask
    of keys): its keys depend on nothing before it. A second one is read after the first, which
    moves its keys. The images of earlier micro-batches of the same step count in, too; the first
    one of a step, if it is alone in its micro-batch, counts for nothing.

    Attributes:
        floor: r that a key should reach, in (0, 1]: the diagnosis's tau (at most 0.1) or a little
            more. Language models add one large constant to all image keys, so r is small for most.
    """

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


@dataclass(frozen=True)
class MassTerm(LayerTerm):
    """Hinge on the attention that text after the images gives to the chosen keys.

    Attributes:
        ceiling: Share of a query's attention that is allowed, in [0, 1).
        chunk: Queries at a time.
    """

    ceiling: float = number(0.05, least=0, below=1)
    chunk: int = number(32, least=1)

    def needs(self) -> Needs:
        """Queries and keys of its layers, and which keys are meant; nothing of `Capture`."""
        return Needs(attention=frozenset(self.layers), agnostic=True)

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Text queries times the KV heads that have a chosen key, over layers."""
        keys_SHV = _given(keys_SHV)
        heads = int(keys_SHV[list(self.layers)].any(-1).sum())
        return heads * sum(
            len(at_T)
            for at_T, spans, extras in zip(
                text_queries(batch.encoded), batch.encoded.images, batch.extras, strict=True
            )
            if not extras.stand_in
            and any(len(span.positions_V) == keys_SHV.shape[-1] for span in spans)
        )

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean of what is beyond the ceiling over layers, text queries, heads with such keys."""
        keys_SHV, means = _given(step.agnostic_SHV), []
        for layer in self.layers:
            bias_H = None if step.gate_SH is None else step.gate_SH[layer]
            for sample, of in enumerate(step.attended(layer)):
                chosen_HL = _positions(step, sample, keys_SHV[layer], len(of.real_L))
                if step.extras[sample].stand_in:
                    chosen_HL[:] = False
                mass_QT = attention_mass(
                    of.q_TQD,
                    of.k_LHD,
                    at_T=of.at_T,
                    real_L=of.real_L,
                    chosen_HL=chosen_HL,
                    scale=of.scale,
                    bias_H=bias_H,
                    chunk=self.chunk,
                )
                means.append(mass_hinge(mass_QT, chosen_HL.any(-1), ceiling=self.ceiling))
        return pooled(means)


def _given(keys_SHV: Tensor | None) -> Tensor:
    if keys_SHV is None:
        raise ValueError("expected the mask of keys to suppress, found none; diagnose first")
    return keys_SHV


def _first_images(encoded: Encoded, extras: Sequence[Extras], keys_SHV: Tensor) -> list[int]:
    """Samples whose first image is real and of the calibrated size."""
    return [
        sample
        for sample, (spans, of) in enumerate(zip(encoded.images, extras, strict=True))
        if not of.stand_in and spans[0].layout.n_tokens == keys_SHV.shape[-1]
    ]


def _positions(step: Step, sample: int, chosen_HV: Tensor, length: int) -> Tensor:
    """chosen_HL: the chosen tokens of every image of the calibrated size in one sample."""
    chosen_HL = torch.zeros(chosen_HV.shape[0], length, dtype=torch.bool)
    for span in step.encoded.images[sample]:
        if len(span.positions_V) == chosen_HV.shape[-1]:
            chosen_HL[:, span.positions_V] = chosen_HV.cpu()
    return chosen_HL


@dataclass(frozen=True)
class GateTerm(LayerTerm):
    """A learned bias per KV head on text queries' logits at the chosen keys, and its penalty.

    The gate itself is trained by whatever other losses the answer has; this term keeps it small.
    """

    def needs(self) -> Needs:
        """Which keys are meant."""
        return Needs(agnostic=True)

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Biases of its layers: the same in every micro-batch."""
        return len(self.layers) * _given(keys_SHV).shape[1]

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean square of the biases, nats^2."""
        if step.gate is None or step.gate_SH is None:
            raise ValueError("expected a gate and what it gave for this step, found none")
        return gate_penalty(step.gate_SH, step.gate.layers)


def gate_penalty(bias_SH: Tensor, layers: Sequence[int]) -> Mean:
    """Mean square of the gated layers' biases, nats^2: keeps heads open that nothing closes."""
    return masked_mean(bias_SH[list(layers)].square(), bias_SH.new_ones(()))
