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
Planted keys (`recipes/plant_keys.py`), eight examples a step: the hinge fell from 7.6 to 0.4 in 40
steps with `batch=8`, to 5.9 with `batch=1 accumulate=8`.

Why of the same step. A mean that runs over earlier steps would be less noisy, but it lags behind
while the mean key moves, and the lag counts as variance: on planted keys such a loss fell from 0.1
to 0.0004 in 40 steps by keys that drifted from step to step and depended on no image at all.

Why the hinge is on ln r. The gradient of r itself vanishes with r, just where a key depends on the
image least: there a hinge of floor - r did not move a planted key in 30 steps.

The estimate is noisy and the hinge is convex, so keys near the bound are pushed a little by noise
alone: give the mask of keys that the diagnosis found, not all keys.

Shapes: I, J and N images, M keys of one image, D channels of a head; T text queries, L keys (all
positions), H KV heads, K of them with a chosen key, Q query heads, G of a KV head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kvfix.repair.losses import Mean, masked_mean

SMALL = 2**18  # logits that backward keeps: 1 MiB costs less than computing them twice


def input_dependence(k_IMD: Tensor, *, earlier_JMD: Tensor | None = None) -> Tensor:
    """Differentiable r of each key; see the module for the estimate.

    Args:
        k_IMD: Pre-RoPE keys of images, the bias of `k_proj` subtracted; M may be any dimensions.
        earlier_JMD: Of J other images, of the same weights, without a graph; None needs I >= 2.

    Returns:
        r_M, float32, at least 0, 1 and more where keys share nothing. Its gradient is scaled by
        all images over those of this micro-batch: micro-batches that each give theirs come, in the
        mean, to that of one batch.

    Raises:
        ValueError: One image and no other.
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
    """max(0, ln(floor / r)), mean over keys: how far they are below the floor, nats.

    Args:
        r_M: Of `input_dependence`, counted as 1e-8 at least.
        floor: In (0, 1].
    """
    return (math.log(floor) - r_M.clamp(min=1e-8).log()).clamp(min=0).mean()


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
        chosen_HL: Bool, keys whose share is asked for; on any device.
        scale: What the layer multiplies its logits with (`self_attn.scaling`).
        bias_H: Nats that a gate adds to the logits of the chosen keys; None is none.
        chunk: Queries at a time.

    Returns:
        mass_QT in [0, 1], float32: sum of the softmax weights of chosen keys.
    """
    heads, group, device = len(chosen_HL), q_TQD.shape[1] // len(chosen_HL), q_TQD.device
    with_K = chosen_HL.any(-1).nonzero().flatten()
    chosen_KL, with_K = chosen_HL[with_K].to(device), with_K.to(device)
    bias_K1L = torch.zeros(len(with_K), 1, len(real_L), device=device)
    if bias_H is not None:
        bias_K1L = torch.where(chosen_KL[:, None], bias_H.float()[with_K, None, None], bias_K1L)
    bias_K1L = bias_K1L.masked_fill(~real_L, -torch.inf)
    at_L = torch.arange(len(real_L), device=device)

    def mass_of(q_TQD: Tensor, at_T: Tensor) -> Tensor:
        q_TKGD = q_TQD.unflatten(1, (heads, group))[:, with_K].float() * scale
        k_KDL = k_LHD[:, with_K].float().permute(1, 2, 0)
        logits_KNL = q_TKGD.permute(1, 2, 0, 3).flatten(1, 2) @ k_KDL
        logits_KGTL = logits_KNL.unflatten(1, (group, len(at_T)))
        # In place: backward does not read the logits.
        logits_KGTL += bias_K1L.masked_fill(at_L > at_T[:, None], -torch.inf)[:, None]
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
    """max(0, mass - ceiling): attention to the chosen keys beyond what is allowed.

    Args:
        mass_QT: Of `attention_mass`.
        counts_H: Bool, KV heads that have a chosen key; the others' queries count for nothing.
        ceiling: In [0, 1).

    Returns:
        Mean over text queries and the query heads of such KV heads, in [0, 1]; as much as queries
        times KV heads.
    """
    beyond_HGT = (mass_QT - ceiling).clamp(min=0).unflatten(0, (len(counts_H), -1))
    return masked_mean(beyond_HGT.mean(1), counts_H[:, None].to(mass_QT.device))
