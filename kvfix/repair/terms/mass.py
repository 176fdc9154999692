"""A term that turns attention away from chosen keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kvfix.bounds import number
from kvfix.repair.batch import Batch
from kvfix.repair.queries import text_queries
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head
from kvfix.repair.terms.mean import Mean, masked_mean, pooled
from kvfix.repair.terms.term import LayerTerm, Needs, _given

SMALL = 2**18  # logits that backward keeps: 1 MiB costs less than computing them twice


def attention_mass(
    q_TQD: Tensor,
    k_LHD: Tensor,
    *,
    at_T: Tensor,
    real_L: Tensor,
    chosen_HL: Tensor,
    scale: float,
    chunk: int = 32,
) -> Tensor:
    """Attention, mass_QT in [0, 1] float32, of each text query to the chosen keys of one layer.

    Only [queries of a chunk, all keys] is alive at a time, and no full [L, L] matrix ever; chunks
    are computed again in backward, unless all of them together are small. Query head h reads KV
    head h // (Q / H). Queries and the keys of the whole sequence are post-RoPE; keys after a query,
    at its position `at_T`, do not exist for it, nor does padding; `scale` is what the layer
    multiplies its logits with (`self_attn.scaling`).
    """
    heads, group, device = len(chosen_HL), q_TQD.shape[1] // len(chosen_HL), q_TQD.device
    with_K = chosen_HL.any(-1).nonzero().flatten()
    chosen_KL, with_K = chosen_HL[with_K].to(device), with_K.to(device)
    at_L = torch.arange(len(real_L), device=device)

    def mass_of(q_TQD: Tensor, at_T: Tensor) -> Tensor:
        q_TKGD = q_TQD.unflatten(1, (heads, group))[:, with_K].float() * scale
        k_KDL = k_LHD[:, with_K].float().permute(1, 2, 0)
        logits_KNL = q_TKGD.permute(1, 2, 0, 3).flatten(1, 2) @ k_KDL
        logits_KGTL = logits_KNL.unflatten(1, (group, len(at_T)))
        # In place: backward does not read the logits.
        logits_KGTL.masked_fill_((at_L > at_T[:, None]) | ~real_L, -torch.inf)
        mass_KGT = (logits_KGTL.softmax(-1) @ chosen_KL[:, None, :, None].float()).squeeze(-1)
        mass_HGT = mass_KGT.new_zeros(heads, group, len(at_T))
        return mass_HGT.index_copy(0, with_K, mass_KGT).flatten(0, 1)

    if q_TQD.shape[0] * q_TQD.shape[1] * len(real_L) <= SMALL:
        return mass_of(q_TQD, at_T)
    chunks = zip(q_TQD.split(chunk), at_T.split(chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([mass_of(*part) for part in chunks], dim=1)
    return torch.cat(
        [
            checkpoint(mass_of, *part, use_reentrant=False, preserve_rng_state=False)
            for part in chunks
        ],
        dim=1,
    )


def mass_hinge(mass_QT: Tensor, counts_H: Tensor, *, ceiling: float) -> Mean:
    """max(0, mass - ceiling): attention to the chosen keys beyond what is allowed, in [0, 1].

    `counts_H` are the KV heads that have a chosen key; the others' queries count for nothing. The
    mean weighs as much as queries times such heads.
    """
    beyond_HGT = (mass_QT - ceiling).clamp(min=0).unflatten(0, (len(counts_H), -1))
    return masked_mean(beyond_HGT.mean(1), counts_H[:, None].to(mass_QT.device))


@dataclass(frozen=True)
class MassTerm(LayerTerm):
    """Hinge on the attention that text after the images gives to the chosen keys."""

    # Share of a query's attention that is allowed, in [0, 1).
    ceiling: float = number(0.05, least=0, below=1)
    chunk: int = number(32, least=1)  # queries at a time

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
                    chunk=self.chunk,
                )
                means.append(mass_hinge(mass_QT, chosen_HL.any(-1), ceiling=self.ceiling))
        return pooled(means)


def _positions(step: Step, sample: int, chosen_HV: Tensor, length: int) -> Tensor:
    """chosen_HL: the chosen tokens of every image of the calibrated size in one sample."""
    chosen_HL = torch.zeros(chosen_HV.shape[0], length, dtype=torch.bool)
    for span in step.encoded.images[sample]:
        if len(span.positions_V) == chosen_HV.shape[-1]:
            chosen_HL[:, span.positions_V] = chosen_HV.cpu()
    return chosen_HL
