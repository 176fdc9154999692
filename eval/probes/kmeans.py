"""k-means with growing k on unit vectors, for S sites and R restarts at once.

Shapes: S sites, R restarts (seeds), M runs that still grow (at most S * R), N points, C channels,
K centres, P points or centres that changed.

Each k adds one centre to the solution for k - 1, drawn in proportion to the squared distance
(k-means++), and runs Lloyd from there. Growing a solution, rather than starting anew at each k,
makes the objective fall monotonically, so that the elbow rule compares like with like.

Every run goes at its own pace: it adds a centre as soon as it has converged, and leaves the batch
when it stops growing. Affinities (x.c - |c|^2 / 2, largest at the nearest centre) are kept, and
computed anew only for centres that gained or lost a point.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kvfix.eval.probes.score import site_chunks

_SMALL = (
    1e-6  # a mean squared distance between unit vectors below this is rounding: nothing to split
)


class Clusters(NamedTuple):
    """labels_SRN int64 in 0..K-1, the k where each run stopped, its mean squared distance."""

    labels_SRN: torch.Tensor
    k_SR: torch.Tensor
    objective_SR: torch.Tensor


class _Runs(NamedTuple):
    """The runs that still grow; every field has M rows and is written in place."""

    number_M: torch.Tensor  # site * R + restart
    k_M: torch.Tensor
    iteration_M: torch.Tensor  # of Lloyd at this k
    before_M: torch.Tensor  # the objective at k - 1
    objective_M: torch.Tensor
    labels_MN: torch.Tensor
    affinity_MKN: torch.Tensor
    total_MKC: torch.Tensor  # sums of members, float64: points come and go without drift
    count_MK: torch.Tensor
    stale_MK: torch.Tensor  # bool: the affinity is that of an earlier centre


def grow_kmeans(
    x_SNC: torch.Tensor,
    *,
    restarts: int,
    generator: torch.Generator,
    max_k: int = 14,
    elbow: float = 0.975,
    lloyd_iterations: int = 20,
    tolerance: float = 1e-4,
) -> Clusters:
    """Cluster float32 unit vectors until one more centre keeps more than ``elbow`` of the
    objective.

    As in Amir et al. (ShirAmir/dino-vit-features, cosegmentation.py), the labels are those of the
    last k tried, the one that did not pay. Lloyd stops when the objective falls, relatively, by
    less than ``tolerance`` (far under 1 - elbow). Every site sees the same draws of the CPU
    ``generator``, so results do not depend on how sites are batched, nor on the device.
    """
    n_sites, n_points, _ = x_SNC.shape
    draw_KR = torch.stack([torch.rand(restarts, generator=generator) for _ in range(max_k)])
    draw_KR = draw_KR.to(x_SNC.device)
    runs = _one_cluster_each(x_SNC, restarts, max_k)
    n_runs = len(runs.number_M)
    labels = runs.labels_MN.new_empty(n_runs, n_points)
    k, objective = torch.empty_like(runs.k_M), torch.empty_like(runs.objective_M)
    while len(runs.number_M):
        _refresh(runs, x_SNC, restarts)
        previous = runs.objective_M.clone()
        distance_MN = _assign(runs, x_SNC, restarts)
        fell_enough = previous - runs.objective_M > tolerance * previous
        converged = ~(fell_enough | (runs.iteration_M == 1)) | ~runs.stale_MK.any(1)
        converged |= runs.iteration_M > lloyd_iterations
        pays = (runs.objective_M <= elbow * runs.before_M) & (runs.objective_M > _SMALL)
        grows = converged & pays & (runs.k_M < max_k)
        _add_centre(runs, x_SNC, grows.nonzero()[:, 0], distance_MN, draw_KR)
        stops = converged & ~grows
        if bool(stops.any()):
            done = runs.number_M[stops]
            labels[done], k[done] = runs.labels_MN[stops], runs.k_M[stops]
            objective[done] = runs.objective_M[stops]
            left = (~stops).nonzero()[:, 0]
            runs = _Runs(*(field[left] for field in runs))
    shape = n_sites, restarts
    return Clusters(labels.view(*shape, n_points), k.view(shape), objective.view(shape))


def _one_cluster_each(x_SNC: torch.Tensor, restarts: int, max_k: int) -> _Runs:
    n_sites, n_points, channels = x_SNC.shape
    n_runs, device = n_sites * restarts, x_SNC.device
    number_M = torch.arange(n_runs, device=device)
    total_MKC = torch.zeros(n_runs, max_k, channels, dtype=torch.float64, device=device)
    total_MKC[:, 0] = x_SNC.sum(1, dtype=torch.float64).repeat_interleave(restarts, dim=0)
    count_MK = torch.zeros(n_runs, max_k, dtype=torch.long, device=device)
    count_MK[:, 0] = n_points
    far_M = x_SNC.new_full((n_runs,), torch.inf)
    return _Runs(
        number_M,
        k_M=torch.ones_like(number_M),
        iteration_M=torch.zeros_like(number_M),
        before_M=far_M,
        objective_M=far_M.clone(),
        labels_MN=torch.zeros(n_runs, n_points, dtype=torch.long, device=device),
        affinity_MKN=x_SNC.new_full((n_runs, max_k, n_points), -torch.inf),
        total_MKC=total_MKC,
        count_MK=count_MK,
        stale_MK=count_MK > 0,
    )


def _refresh(runs: _Runs, x_SNC: torch.Tensor, restarts: int) -> None:
    """Move the stale centres to the mean of their members and compute their affinities."""
    m_P, k_P = runs.stale_MK.nonzero(as_tuple=True)
    count_P = runs.count_MK[m_P, k_P]
    centre_PC = (runs.total_MKC[m_P, k_P] / count_P.clamp(min=1)[:, None]).to(x_SNC.dtype)
    sizes = torch.bincount(runs.number_M[m_P] // restarts, minlength=len(x_SNC)).tolist()
    affinity_PN = x_SNC.new_empty(len(m_P), x_SNC.shape[1])
    for x_NC, centre, out in zip(
        x_SNC, centre_PC.split(sizes), affinity_PN.split(sizes), strict=True
    ):
        torch.mm(centre, x_NC.T, out=out)
    affinity_PN -= centre_PC.square().sum(1, keepdim=True) / 2
    runs.affinity_MKN[m_P, k_P] = affinity_PN
    new_P = count_P == 0
    runs.total_MKC[m_P[new_P], k_P[new_P]] = 0  # a drawn point is no member before it is assigned
    runs.stale_MK.zero_()


def _assign(runs: _Runs, x_SNC: torch.Tensor, restarts: int) -> torch.Tensor:
    """Move points to their nearest centre, and give the squared distances (M, N).

    A cluster that loses its last point keeps its centre: it may win points back.
    """
    affinity = runs.affinity_MKN[:, : int(runs.k_M.max())]
    best_MN = affinity.amax(1)  # an arg max over all would cost thirty times as much
    own_MN = affinity.gather(1, runs.labels_MN[:, None])[:, 0]
    m_P, n_P = (own_MN < best_MN).nonzero(as_tuple=True)
    old_P, new_P = runs.labels_MN[m_P, n_P], affinity[m_P, :, n_P].argmax(1)
    runs.labels_MN[m_P, n_P] = new_P
    max_k, channels = runs.total_MKC.shape[1:]
    for part in site_chunks(len(m_P), 4 * channels):
        site_P = runs.number_M[m_P[part]] // restarts
        x_PC = x_SNC[site_P, n_P[part]].double()
        for k_P, sign in ((new_P[part], 1), (old_P[part], -1)):
            at_P = m_P[part] * max_k + k_P
            runs.total_MKC.view(-1, channels).index_add_(0, at_P, x_PC, alpha=sign)
            runs.count_MK.view(-1).index_add_(0, at_P, torch.ones_like(at_P), alpha=sign)
            runs.stale_MK.view(-1)[at_P] = True
    runs.stale_MK.logical_and_(runs.count_MK > 0)
    distance_MN = (1 - 2 * best_MN).clamp_(min=0)
    runs.objective_M.copy_(distance_MN.mean(1))
    runs.iteration_M.add_(1)
    return distance_MN


def _add_centre(
    runs: _Runs,
    x_SNC: torch.Tensor,
    m_P: torch.Tensor,
    distance_MN: torch.Tensor,
    draw_KR: torch.Tensor,
) -> None:
    """Draw a point of each of the runs ``m_P`` as its next centre, of no members yet."""
    restarts = draw_KR.shape[1]
    number_P, k_P = runs.number_M[m_P], runs.k_M[m_P]
    n_P = _draw(distance_MN[m_P], draw_KR[k_P - 1, number_P % restarts])
    runs.total_MKC[m_P, k_P] = x_SNC[number_P // restarts, n_P].double()
    runs.stale_MK[m_P, k_P] = True
    runs.before_M[m_P] = runs.objective_M[m_P]
    runs.k_M[m_P], runs.iteration_M[m_P] = k_P + 1, 0


def _draw(distance_PN: torch.Tensor, u_P: torch.Tensor) -> torch.Tensor:
    """Index of a point drawn in proportion to its squared distance, by inverting the CDF at u."""
    cdf = distance_PN.double().cumsum(1)
    target = u_P.double()[:, None] * cdf[:, -1:]
    # right=True: a point of distance zero (already a centre) is never drawn.
    return torch.searchsorted(cdf, target, right=True)[:, 0].clamp(max=cdf.shape[1] - 1)
