"""The batched logistic regression against scipy, and what it refuses."""

import numpy as np
import pytest
import torch
from scipy import optimize

from kvfix.eval.probes import logistic

# ----------------------------------------------------------------------------


def reference_logistic(
    x: np.ndarray, y: np.ndarray, v: np.ndarray, l2: float
) -> tuple[np.ndarray, float]:
    """The same objective, minimised by scipy in float64."""
    v = v / v.sum()

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ theta[:-1] + theta[-1]
        value = v @ (np.logaddexp(0, z) - y * z) + l2 / 2 * theta[:-1] @ theta[:-1]
        r = v * (1 / (1 + np.exp(-z)) - y)
        return value, np.append(x.T @ r + l2 * theta[:-1], r.sum())

    found = optimize.minimize(
        loss,
        np.zeros(x.shape[1] + 1),
        jac=True,
        tol=1e-14,
        options={"gtol": 1e-10, "maxiter": 5000},
    )
    return found.x[:-1], found.x[-1]


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_logistic_equals_scipy(l2: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 60, 8)) / np.sqrt(8)
    y = 1 / (1 + np.exp(-4 * x[0, :, 0] + rng.normal(size=60)))
    v = rng.random(60)
    got = logistic.fit_logistic(
        torch.tensor(x), torch.tensor(y), weight_N=torch.tensor(v), l2=l2, tolerance=1e-9
    )
    assert got.converged_S.all()
    for s in range(3):
        weight, bias = reference_logistic(x[s], y, v, l2)
        assert got.weight_SC[s].numpy() == pytest.approx(weight, abs=1e-4)
        assert float(got.bias_S[s]) == pytest.approx(bias, abs=1e-4)


def test_logistic_in_float32_at_the_probe_s_own_settings_gives_the_same_probabilities() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.rand(720, generator=g).round()  # masks are mostly all or nothing
    x = torch.randn(2, 720, 32, generator=g) + 1.5 * y[:, None] * torch.randn(2, 1, 32, generator=g)
    x = logistic.fit_standardiser(x)(x)
    got = logistic.fit_logistic(x, y, tolerance=1e-6)
    for s in range(2):
        weight, bias = reference_logistic(
            x[s].double().numpy(), y.double().numpy(), np.ones(len(y)), 1e-3
        )
        mine = torch.sigmoid(x[s] @ got.weight_SC[s] + got.bias_S[s])
        theirs = torch.sigmoid(x[s].double() @ torch.tensor(weight) + bias)
        assert torch.allclose(mine.double(), theirs, atol=1e-4)


def test_standardiser_is_blind_to_scale_offset_and_dead_channels() -> None:
    x = torch.randn(2, 50, 6)
    moved = x * torch.tensor([1.0, 1e4, 1e-4, 3.0, 1.0, 1.0]) + 7
    moved[..., 5] = 1000.0
    plain, after = logistic.fit_standardiser(x)(x), logistic.fit_standardiser(moved)(moved)
    assert torch.allclose(plain[..., [0, 1, 3, 4]], after[..., [0, 1, 3, 4]], atol=1e-3)
    assert (after[..., 5] == 0).all()
    assert plain.square().sum(2).mean() == pytest.approx(1.0, abs=1e-4)


def test_logistic_refuses_what_has_no_optimum() -> None:
    x, y = torch.randn(1, 4, 2), torch.tensor([0.0, 1, 0, 1])
    with pytest.raises(ValueError, match="l2 must be positive"):
        logistic.fit_logistic(x, y, l2=0)
    with pytest.raises(ValueError, match="every support mask is void"):
        logistic.fit_logistic(x, y, weight_N=torch.zeros(4))
