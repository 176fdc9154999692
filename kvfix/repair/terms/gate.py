"""A term that lets a gate learn how much of chosen keys is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvfix.repair.batch import Batch
from kvfix.repair.step import Step
from kvfix.repair.terms.mean import Mean, masked_mean
from kvfix.repair.terms.term import Head, LayerTerm, Needs, _given


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
