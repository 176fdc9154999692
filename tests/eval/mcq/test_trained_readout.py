"""A trained readout finds what training can find, and cross-validation does not flatter it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grids import grid_layout

from kvfix.eval.mcq import trained_readout
from kvfix.eval.mcq.readouts import Images, Marked, Points
from kvfix.eval.mcq.trained_readout import (
    FEWEST,
    PENALTIES,
    Options,
    _fit,
    option_features,
    train_readout,
)
from kvfix.eval.probes.logistic import LogisticFit, fit_logistic
from kvfix.eval.source import View

SITES, CHANNELS = 3, 24


def questions(
    n: int, rng: np.random.Generator, *, site: int | None = 1, told: int = 6, options: int = 3
) -> list[Options]:
    """At `site` the right option lies close in `told` quiet channels; nothing else tells it."""
    out = []
    for i in range(n):
        answer = int(rng.integers(options))
        apart = rng.normal(size=(SITES, options, CHANNELS)) ** 2
        apart[..., :told] *= 0.01
        if site is not None:
            apart[site, answer, :told] *= 0.01
        x = torch.from_numpy(apart - apart.mean(1, keepdims=True)).float()
        out.append(Options(x, answer, f"c{i}"))
    return out


def test_what_no_plain_distance_shows_is_learned_at_the_right_site() -> None:
    rng = np.random.default_rng(0)
    learned, asked = questions(120, rng), questions(200, rng)
    plain = np.mean([int(q.x_SKD[1].sum(-1).argmin()) == q.answer for q in asked])
    assert plain < 0.45  # loud channels hide it: 0.33 is chance
    found = train_readout(learned)
    right = np.mean([found.choose(q.x_SKD) == q.answer for q in asked])
    assert found.site == 1 and right > 0.85 and found.n == 120
    assert found.penalty in PENALTIES and abs(found.cv_accuracy - right) < 0.1


def test_features_that_hold_nothing_teach_nothing() -> None:
    rng = np.random.default_rng(1)
    found = train_readout(questions(90, rng, site=None))
    asked = questions(300, rng, site=None)
    right = np.mean([found.choose(q.x_SKD) == q.answer for q in asked])
    assert abs(right - 1 / 3) < 4 * np.sqrt(2 / 9 / 300)


def test_a_cluster_is_never_on_both_sides_of_a_fold() -> None:
    """Each cluster is one question many times over: to know it is to know its copies."""
    rng = np.random.default_rng(2)
    copies = [q for q in questions(25, rng, site=None, options=2) for _ in range(6)]
    found = train_readout(copies)
    alone = train_readout([q._replace(cluster=f"{i}") for i, q in enumerate(copies)])
    assert alone.cv_accuracy > 0.95  # the leak, where copies count as questions of their own
    assert found.cv_accuracy < 0.75


def test_the_same_seed_gives_the_same_readout() -> None:
    taught = questions(40, np.random.default_rng(3))
    one, same = (train_readout(taught, seed=4) for _ in "ab")
    assert one.site == same.site and torch.equal(one.weight_D, same.weight_D)


def test_a_question_of_many_options_weighs_no_more_than_one_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(5)
    both = [questions(1, rng, options=k)[0]._replace(answer=1) for k in (2, 4)]
    given: dict[str, torch.Tensor] = {}

    def spy(x: torch.Tensor, y: torch.Tensor, **how: torch.Tensor) -> LogisticFit:
        given.update(how, y=y)
        return fit_logistic(x, y, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(trained_readout, "fit_logistic", spy)
    weight_SD, _ = _fit(both, 1e-2)
    assert weight_SD.shape == (SITES, CHANNELS)
    assert given["weight_N"].tolist() == [1 / 2] * 2 + [1 / 4] * 4
    assert given["y"].tolist() == [0, 1, 0, 1, 0, 0]


def test_too_few_questions_are_refused() -> None:
    rng = np.random.default_rng(6)
    with pytest.raises(ValueError, match=f"at least {FEWEST} questions .* found 4"):
        train_readout(questions(4, rng))
    one = [q._replace(cluster="same") for q in questions(40, rng)]
    with pytest.raises(ValueError, match="in 5 clusters to train on, found 40 in 1"):
        train_readout(one)


def views(*cells: list[list[float]]) -> list[View]:
    """Images of 1 x 2 cells and two channels, one site."""
    layout = grid_layout((8, 16), (1, 2))
    return [View({"value": torch.tensor(c)[None, None]}, layout) for c in cells]


def test_image_options_by_hand() -> None:
    """Mean and standard deviation of the cells, squared difference to image 0, centred."""
    marked = Marked(
        views(
            [[0.0, 1.0], [2.0, 1.0]],  # mean 1 1, deviation 1 0
            [[1.0, 1.0], [1.0, 1.0]],  # mean 1 1, deviation 0 0: apart 0 0 1 0
            [[0.0, 1.0], [6.0, 1.0]],  # mean 3 1, deviation 3 0: apart 4 0 4 0
        ),
        Images((1, 2)),
    )
    got = option_features(marked, "value")
    assert got.tolist() == [[[-2, 0, -1.5, 0], [2, 0, 1.5, 0]]]


def test_point_options_by_hand() -> None:
    """Unit features at the points; cells are centred at 3.5 and 11.5."""
    a, b = views([[3.0, 0.0], [0.0, 5.0]], [[2.0, 0.0], [0.0, 0.1]])
    points = Points(np.array([[11.5, 3.5]]), np.array([[3.5, 3.5], [11.5, 3.5]]), found=False)
    got = option_features(Marked([a, b], points), "value")
    # Reference (0, 1); options (1, 0), apart (1, 1), and (0, 1), apart (0, 0).
    torch.testing.assert_close(got, torch.tensor([[[0.5, 0.5], [-0.5, -0.5]]]))
