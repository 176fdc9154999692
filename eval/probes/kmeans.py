"""k-means with growing k on unit vectors, for S sites and R restarts at once.

Shapes: S sites, R restarts (seeds), N points, C channels, K centres.

Each k adds one centre to the solution for k - 1, drawn in proportion to the squared distance
(k-means++), and runs Lloyd from there. Growing a solution, rather than starting anew at each k,
makes the objective fall monotonically, so that the elbow rule compares like with like.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_SMALL = (
    1e-6  # a mean squared distance between unit vectors below this is rounding: nothing to split
)


class Clusters(NamedTuple):
    """labels_SRN int64 in 0..K-1, k_SR the k where each run stopped, objective_SR mean squared
    distance.
    """

    labels_SRN: torch.Tensor
    k_SR: torch.Tensor
    objective_SR: torch.Tensor


def grow_kmeans(
    x_SNC: torch.Tensor,
    *,
    restarts: int,
    generator: torch.Generator,
    max_k: int = 14,
    elbow: float = 0.975,
    lloyd_iterations: int = 20,
    tolerance: float = 1e-3,
) -> Clusters:
    """Cluster until one more centre keeps more than ``elbow`` of the objective.

    As in Amir et al. (ShirAmir/dino-vit-features, cosegmentation.py), the labels are those of the
    last k tried, the one that did not pay.

    Args:
        x_SNC: float32 unit vectors.
        restarts: R, independent draws of the added centres.
        generator: CPU generator. Every site sees the same draws, so results do not depend on how
            sites are batched, nor on the device.
        max_k: stop here at the latest.
        elbow: objective ratio above which growing stops.
        lloyd_iterations: at most, for each k.
        tolerance: relative fall of the objective below which Lloyd stops (far under 1 - elbow).
    """
    n_sites, _, channels = x_SNC.shape
    centres = x_SNC.new_zeros(n_sites, restarts, max_k, channels)
    centres[:, :, 0] = x_SNC.mean(1)[:, None]
    labels, distance = _assign(x_SNC, centres[:, :, :1])
    objective = distance.mean(2)
    final_labels, final_objective = labels, objective
    k_SR = torch.ones(n_sites, restarts, dtype=torch.long, device=x_SNC.device)
    growing = objective > _SMALL
    for k in range(2, max_k + 1):
        draw_R = torch.rand(restarts, generator=generator).to(x_SNC.device)
        if not bool(growing.any()):
            break
        chosen_SR = _draw(distance, draw_R)
        new = x_SNC.gather(1, chosen_SR[..., None].expand(-1, -1, channels))
        centres[:, :, k - 1] = new
        previous = objective
        labels, distance = _lloyd(x_SNC, centres[:, :, :k], lloyd_iterations, tolerance)
        objective = distance.mean(2)
        final_labels = torch.where(growing[..., None], labels, final_labels)
        final_objective = torch.where(growing, objective, final_objective)
        k_SR = torch.where(growing, k, k_SR)
        growing = growing & (objective <= elbow * previous) & (objective > _SMALL)
    return Clusters(final_labels, k_SR, final_objective)


def _draw(distance_SRN: torch.Tensor, u_R: torch.Tensor) -> torch.Tensor:
    """Index of a point drawn in proportion to its squared distance, by inverting the CDF at u."""
    cdf = distance_SRN.double().cumsum(2)
    target = u_R.double()[None, :, None] * cdf[..., -1:]
    # right=True: a point of distance zero (already a centre) is never drawn.
    return torch.searchsorted(cdf, target.contiguous(), right=True)[..., 0].clamp(
        max=cdf.shape[2] - 1
    )


def _assign(x_SNC: torch.Tensor, centres_SRKC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest centre and squared distance to it, each (S, R, N)."""
    n_sites, restarts, k, channels = centres_SRKC.shape
    flat = centres_SRKC.reshape(n_sites, restarts * k, channels)
    half_norm = flat.square().sum(2)[..., None] / 2
    affinity = torch.baddbmm(half_norm, flat, x_SNC.mT, beta=-1)  # x.c - |c|^2 / 2, (S, RK, N)
    best, labels = affinity.view(n_sites, restarts, k, -1).max(2)
    return labels, (1 - 2 * best).clamp(min=0)


def _lloyd(
    x_SNC: torch.Tensor, centres_SRKC: torch.Tensor, iterations: int, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's iterations; writes the centres in place and returns the last labels and distances."""
    n_sites, restarts, k, channels = centres_SRKC.shape
    labels, distance = _assign(x_SNC, centres_SRKC)
    objective = distance.mean(2)
    for _ in range(iterations):
        member = torch.zeros(n_sites, restarts, k, x_SNC.shape[1], device=x_SNC.device)
        member.scatter_(2, labels[:, :, None], 1.0)
        count = member.sum(3)
        total = torch.bmm(member.flatten(1, 2), x_SNC).view(n_sites, restarts, k, channels)
        mean = total / count.clamp(min=1)[..., None]
        # An empty cluster keeps its centre: it may win points back, and never divides by zero.
        centres_SRKC.copy_(torch.where(count[..., None] > 0, mean, centres_SRKC))
        labels, distance = _assign(x_SNC, centres_SRKC)
        previous, objective = objective, distance.mean(2)
        if bool((previous - objective <= tolerance * previous).all()):
            break
    return labels, distance
