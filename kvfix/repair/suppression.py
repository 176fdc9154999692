"""Losses against input-agnostic keys: image keys whose direction hardly depends on the image.

No published work trains on them. Two handles: make the keys depend on the image again (`r` up), or
make late text look at them less (attention mass down).

The statistic, for one layer, KV head and position at a fixed resolution, over images:

    r = tr Var(k) / (tr Var(k) + |mean k|^2) = tr Var(k) / E|k|^2

With n images, the plain estimate (variance over n, squared length of the sample mean) is too low by
the factor (n - 1) / n: the mean of two keys already holds half of their variance, so at n = 2 a key
of r = 1 would look like 0.5, and a hinge would push what is fine. Here it is s^2 / mean |k_i|^2
with the unbiased variance s^2 (over n - 1). Numerator and denominator are both unbiased, which
leaves the ratio's own bias of order 1/n; it equals 1 - (mean inner product of two different images'
keys) / mean |k_i|^2. It is the r of `kvfix.diagnose` without the clip there, so it may exceed 1.

The images are those of the micro-batch and of the micro-batches before it in the SAME optimizer
step (`StepKeys`, no gradient), so that micro-batches of one image will do. They learn far more
slowly: of two images in one graph the gradients of what they share cancel, of one they are noise.
Planted keys, eight examples a step: the hinge fell from 7.6 to 0.4 in 40 steps with all eight in
one micro-batch, to 5.9 with one in each.

Why of the same step. A mean that runs over earlier steps would be less noisy, but it lags behind
while the mean key moves, and the lag counts as variance: on a nano with planted agnostic keys
(`recipes/plant_keys.py`) such a loss fell from 0.1 to 0.0004 in 40 steps by keys that drifted from
step to step and depended on no image at all.

Why the hinge is on ln r. The gradient of r itself vanishes with r, just where a key depends on the
image least: there a hinge of floor - r did not move a planted key in 30 steps.

The estimate is noisy and the hinge is convex, so keys near the bound are pushed a little by noise
alone: give the mask of keys that the diagnosis found, not all keys.

Shapes: I images, S layers, H KV heads, N cells, D channels of a head; T text queries, L keys (all
positions), Q query heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kvfix.repair.losses import Mean, masked_mean
from kvfix.repair.step_keys import Moments

SMALL = 2**18  # logits that backward keeps: 1 MiB costs less than computing them twice


def input_dependence(k_ISHND: Tensor, *, earlier: Moments | None = None) -> Tensor:
    """Differentiable r of each layer, KV head and position; see the module for the estimate.

    Args:
        k_ISHND: Pre-RoPE keys of images at one resolution, the bias of `k_proj` subtracted.
        earlier: Of other images' keys, of the same weights and without a graph; None needs I >= 2.

    Returns:
        r_SHN, float32, at least 0, 1 and more where keys share nothing. Its gradient is scaled by
        all images over those of this micro-batch: micro-batches that each give theirs come, in the
        mean, to that of one batch.

    Raises:
        ValueError: One image and no other.
    """
    here = Moments.of(k_ISHND)
    of = here if earlier is None else earlier.and_(here)
    if of.n < 2:
        raise ValueError("expected keys of at least two images, found 1; give earlier ones")
    # A key of length 0 has no direction: r = 0 there, without a NaN in the gradient.
    r_SHN = of.m2_SHN * (of.n / (of.n - 1)) / of.squares_SHN.clamp(min=1e-12)
    known_SHN = r_SHN.detach()
    return known_SHN + (r_SHN - known_SHN) * (of.n / here.n)


def dependence_hinge(r_SHN: Tensor, chosen_SHN: Tensor, *, floor: float) -> Mean:
    """max(0, ln(floor / r)): how far each chosen key is below the floor.

    Args:
        r_SHN: Of `input_dependence`.
        chosen_SHN: Bool, the keys that should depend more on the image.
        floor: In (0, 1].

    Returns:
        Mean over chosen keys, nats, at least 0; r counts as 1e-8 at least.
    """
    below_SHN = math.log(floor) - r_SHN.clamp(min=1e-8).log()
    return masked_mean(below_SHN.clamp(min=0), chosen_SHN.to(r_SHN.device))


def attention_mass(
    q_TQD: Tensor,
    k_LHD: Tensor,
    *,
    at_T: Tensor,
    real_L: Tensor,
    chosen_HL: Tensor,
    scale: float,
    bias_H: Tensor | None = None,
    chunk: int = 32,
) -> Tensor:
    """Attention that each text query of one sample gives to the chosen keys, in one layer.

    Only [queries of a chunk, all keys] is alive at a time, and no full [L, L] matrix ever; chunks
    are computed again in backward, unless all of them together are small. Query head h reads KV
    head h // (Q / H).

    Args:
        q_TQD: Queries, post-RoPE.
        k_LHD: Keys of the whole sequence, post-RoPE.
        at_T: Positions of the queries; keys after a query do not exist for it.
        real_L: Bool, positions that are not padding.
        chosen_HL: Bool, keys whose share is asked for.
        scale: What the layer multiplies its logits with (`self_attn.scaling`).
        bias_H: Nats that a gate adds to the logits of the chosen keys; None is none.
        chunk: Queries at a time.

    Returns:
        mass_QT in [0, 1], float32: sum of the softmax weights of chosen keys.
    """
    if bias_H is None:
        bias_H = k_LHD.new_zeros(k_LHD.shape[1], dtype=torch.float32)

    def mass_of(q_TQD: Tensor, at_T: Tensor) -> Tensor:
        return _mass(q_TQD, at_T, k_LHD, real_L, chosen_HL, bias_H, scale)

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


def _mass(
    q_TQD: Tensor,
    at_T: Tensor,
    k_LHD: Tensor,
    real_L: Tensor,
    chosen_HL: Tensor,
    bias_H: Tensor,
    scale: float,
) -> Tensor:
    heads = k_LHD.shape[1]
    q_THGD = q_TQD.float().unflatten(1, (heads, -1))
    logits_HGTL = torch.einsum("thgd,lhd->hgtl", q_THGD, k_LHD.float()) * scale
    chosen_H11L = chosen_HL[:, None, None]
    logits_HGTL = logits_HGTL + torch.where(chosen_H11L, bias_H.float()[:, None, None, None], 0.0)
    at_L = torch.arange(len(real_L), device=at_T.device)
    hidden_TL = (at_L > at_T[:, None]) | ~real_L
    logits_HGTL = logits_HGTL.masked_fill(hidden_TL, -torch.inf)
    return torch.einsum("hgtl,hl->hgt", logits_HGTL.softmax(-1), chosen_HL.float()).flatten(0, 1)


def mass_hinge(mass_QT: Tensor, counts_H: Tensor, *, ceiling: float) -> Mean:
    """max(0, mass - ceiling): attention to the chosen keys beyond what is allowed.

    Args:
        mass_QT: Of `attention_mass`.
        counts_H: Bool, KV heads that have a chosen key; the others' queries count for nothing.
        ceiling: In [0, 1).

    Returns:
        Mean over text queries and the query heads of such KV heads, in [0, 1].
    """
    counts_Q = counts_H.repeat_interleave(len(mass_QT) // len(counts_H)).to(mass_QT.device)
    return masked_mean((mass_QT - ceiling).clamp(min=0), counts_Q[:, None])
