"""L2-regularised logistic regression with soft labels, solved for S sites at once.

Shapes: S sites, N samples, C channels, T trial steps.

    minimise  sum_n v_n * BCE(sigmoid(x_n . w + b), y_n) / sum_n v_n  +  l2 / 2 * |w|^2

A batched L-BFGS: each iteration costs two passes over the features whatever C is (Newton's C x C
Hessian would not fit at C = 3584, S = 28). The line search works on cached logits, so it is free of
passes; it looks at the slope only, because differences of float32 losses are noise near the
optimum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_TRIALS = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)  # in units of the 1-D Newton step
_MEMORY = 10


class LogisticFit(NamedTuple):
    """weight_SC and bias_S of classifiers; converged_S; iterations used by the slowest site."""

    weight_SC: torch.Tensor
    bias_S: torch.Tensor
    converged_S: torch.Tensor
    iterations: int


class Standardiser(NamedTuple):
    """Maps features to (x - mean_S1C) * scale_S1C, fitted on the support only."""

    mean_S1C: torch.Tensor
    scale_S1C: torch.Tensor

    def __call__(self, x_SNC: torch.Tensor) -> torch.Tensor:
        return (x_SNC.float() - self.mean_S1C).mul_(self.scale_S1C)


def fit_standardiser(x_SNC: torch.Tensor) -> Standardiser:
    """Zero mean and variance 1 / C per channel, so that |x|^2 is 1 on average at every site.

    One ``l2`` then means the same at every layer, and a massive-activation channel weighs no more
    than any other. Channels constant up to rounding are dropped (scale 0) instead of blown up.
    """
    x = x_SNC.float()
    # Two passes: torch.std_mean is slow along a middle axis, and a mean of squares would cancel.
    # Site by site, so that the differences stay in the processor's cache.
    mean = x.mean(1, keepdim=True)
    variances = [(x_NC - m_1C).square_().mean(0) for x_NC, m_1C in zip(x, mean, strict=True)]
    std = torch.stack(variances)[:, None].sqrt()
    varies = std > 1e-6 * mean.abs()
    scale = torch.where(varies, std.clamp(min=1e-20).reciprocal(), 0.0) / x.shape[2] ** 0.5
    return Standardiser(mean, scale)


def fit_logistic(
    x_SNC: torch.Tensor,
    y_N: torch.Tensor,
    *,
    weight_N: torch.Tensor | None = None,
    l2: float = 1e-3,
    tolerance: float = 1e-4,
    max_iterations: int = 200,
) -> LogisticFit:
    """Fit S classifiers that share soft labels in [0, 1], in the features' dtype, float32 or
    float64.

    ``l2`` is the penalty on w (the bias is free), above 0, as separable data has no optimum
    without; it is meant for |x| about 1 (see fit_standardiser). It stops when the gradient's norm
    is below the ``tolerance`` at every site: the distance to the optimum is then at most tolerance
    / l2 in w, and far less along directions that the data fixes. Sites that have not converged
    after ``max_iterations`` are reported in ``converged_S``.
    """
    if l2 <= 0:
        raise ValueError(
            f"l2 must be positive, got {l2}: separable patches have no optimum without it"
        )
    y = y_N.to(x_SNC)
    v = torch.ones_like(y) if weight_N is None else weight_N.to(x_SNC)
    if not float(v.sum()) > 0:
        raise ValueError("no support patch has a valid label: every support mask is void")
    v = v / v.sum()

    n_sites, _, channels = x_SNC.shape
    theta = x_SNC.new_zeros(n_sites, channels + 1)
    base_rate = (v @ y).clamp(1e-3, 1 - 1e-3)
    theta[:, -1] = torch.logit(base_rate)
    penalty = torch.full_like(theta, l2)
    penalty[:, -1] = 0
    logits = theta[:, -1:].expand(-1, len(y)).clone()

    steps: list[torch.Tensor] = []
    changes: list[torch.Tensor] = []
    gradient = _gradient(x_SNC, logits, y, v) + penalty * theta
    iteration = 0
    while iteration < max_iterations and bool((gradient.norm(dim=1) > tolerance).any()):
        iteration += 1
        direction = -_inverse_hessian_times(gradient, steps, changes)
        along = _forward(x_SNC, direction)
        t = _line_search(logits, along, y, v, penalty, theta, direction)
        theta = theta + t * direction
        logits = logits + t * along
        previous, gradient = gradient, _gradient(x_SNC, logits, y, v) + penalty * theta
        steps, changes = (
            [*steps, t * direction][-_MEMORY:],
            [*changes, gradient - previous][-_MEMORY:],
        )
    return LogisticFit(theta[:, :-1], theta[:, -1], gradient.norm(dim=1) <= tolerance, iteration)


def _forward(x_SNC: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    # The weights from the left: a column from the right takes four times as long on a CPU.
    return torch.bmm(theta[:, None, :-1], x_SNC.mT)[:, 0] + theta[:, -1:]


def _gradient(
    x_SNC: torch.Tensor, logits_SN: torch.Tensor, y_N: torch.Tensor, v_N: torch.Tensor
) -> torch.Tensor:
    residual = (torch.sigmoid(logits_SN) - y_N) * v_N
    by_weight = torch.bmm(residual[:, None], x_SNC)[:, 0]
    return torch.cat((by_weight, residual.sum(1, keepdim=True)), dim=1)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(1, keepdim=True)


def _inverse_hessian_times(
    gradient: torch.Tensor, steps: list[torch.Tensor], changes: list[torch.Tensor]
) -> torch.Tensor:
    """Two-loop recursion (Nocedal and Wright, algorithm 7.4), pairs without curvature left out."""
    if not steps:
        return gradient
    tiny = torch.finfo(gradient.dtype).tiny
    curvature = [_dot(s, c) for s, c in zip(steps, changes, strict=True)]
    rho = [torch.where(k > tiny, 1 / k.clamp(min=tiny), 0.0) for k in curvature]
    q, alphas = gradient, []
    for s, c, r in zip(reversed(steps), reversed(changes), reversed(rho), strict=True):
        alphas.append(r * _dot(s, q))
        q = q - alphas[-1] * c
    change_norm = _dot(changes[-1], changes[-1])
    scale = torch.where(curvature[-1] > tiny, curvature[-1] / change_norm.clamp(min=tiny), 1.0)
    q = q * scale
    for s, c, r, alpha in zip(steps, changes, rho, reversed(alphas), strict=True):
        q = q + s * (alpha - r * _dot(c, q))
    return q


def _line_search(
    logits: torch.Tensor,
    along: torch.Tensor,
    y: torch.Tensor,
    v: torch.Tensor,
    penalty: torch.Tensor,
    theta: torch.Tensor,
    direction: torch.Tensor,
) -> torch.Tensor:
    """(S, 1) step where the slope along ``direction`` crosses zero, by one bracketed secant.

    The loss is convex, so the slope only grows with t: the first trial with a positive slope closes
    the bracket, and the last one with a negative slope opens it.
    """
    p = torch.sigmoid(logits)
    linear, quadratic = _dot(penalty * theta, direction), _dot(penalty * direction, direction)
    slope0 = ((p - y) * v * along).sum(1, keepdim=True) + linear
    curvature = (p * (1 - p) * v * along**2).sum(1, keepdim=True) + quadratic
    tiny = torch.finfo(logits.dtype).tiny
    newton = (-slope0).clamp(min=0) / curvature.clamp(min=tiny)
    trial_T = logits.new_tensor((0.0, *_TRIALS))
    trial_ST = newton * trial_T
    at_STN = torch.sigmoid(logits[:, None] + trial_ST[..., None] * along[:, None])
    slope_ST = ((at_STN - y) * (v * along)[:, None]).sum(2) + linear + trial_ST * quadratic
    above = slope_ST > 0
    right = torch.where(above.any(1), above.int().argmax(1), len(trial_T) - 1).clamp(min=1)[:, None]
    t0, t1 = trial_ST.gather(1, right - 1), trial_ST.gather(1, right)
    s0, s1 = slope_ST.gather(1, right - 1), slope_ST.gather(1, right)
    crossing = t0 + (t1 - t0) * (-s0 / (s1 - s0).clamp(min=tiny)).clamp(0, 1)
    return torch.where(s1 > 0, crossing, t1)
