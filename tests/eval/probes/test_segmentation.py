"""Segmentation probes: known answers and chance on shuffled features."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from grids import grid_layout, shuffled, square_mask
from torch.nn import functional

from kvfix.eval import grid, metrics
from kvfix.eval.probes import cosegmentation, kmeans, segmentation
from kvfix.eval.probes import score as unit

HW, GRID = (96, 96), (12, 12)
LAYOUT = grid_layout(HW, GRID)


def one_hot(mask: np.ndarray, layout: grid.Layout = LAYOUT, sites: int = 2) -> torch.Tensor:
    """Features that are the truth: channel 0 the foreground share of a cell, 1 the rest."""
    share = grid.to_grid(mask, layout).share_HW
    return torch.stack((share, 1 - share), dim=-1).expand(sites, -1, -1, -1)


def informative(masks: list[np.ndarray], seed: int, sites: int = 4) -> list[torch.Tensor]:
    """Noise in 32 channels, plus one object direction a site on the masks."""
    g = torch.Generator().manual_seed(seed)
    direction = torch.randn(sites, 1, 1, 32, generator=g)
    shares = [grid.to_grid(m, LAYOUT).share_HW[None, ..., None] for m in masks]
    return [s * 3 * direction + torch.randn(sites, *GRID, 32, generator=g) for s in shares]


# --- foreground
# -------------------------------------------------------------------------------------

SUPPORT = [square_mask(HW, 8 * i, 60 - 8 * i, 40, 32) for i in range(5)]
QUERY = square_mask(HW, 30, 10, 37, 45)


def test_foreground_on_truth_as_features_reaches_the_ceiling() -> None:
    score = segmentation.score_episode(
        [one_hot(m) for m in SUPPORT],
        SUPPORT,
        [LAYOUT] * 5,
        one_hot(QUERY),
        QUERY,
        LAYOUT,
        l2=1e-5,
        keep=1,
    )
    assert score.ceiling > 0.9
    assert score.score_S == pytest.approx([score.ceiling] * 2, abs=0.02)
    assert (score.kept == (QUERY > 0)).mean() > 0.97
    assert score.inter_S / score.union_S == pytest.approx(score.score_S)
    assert score.extra["inter_background"] + score.union_S == pytest.approx([96 * 96] * 2)


def test_foreground_learns_the_support_s_direction_and_each_site_alone() -> None:
    *support, query = informative([*SUPPORT, QUERY], 0)
    batch = segmentation.score_episode(support, SUPPORT, [LAYOUT] * 5, query, QUERY, LAYOUT)
    assert (batch.score_S > 0.8).all() and (batch.chance_S < 0.2).all()
    alone = segmentation.score_episode(
        [f[2:3] for f in support], SUPPORT, [LAYOUT] * 5, query[2:3], QUERY, LAYOUT
    )
    assert alone.score_S[0] == pytest.approx(batch.score_S[2], abs=1e-3)


def at_chance(score_of: Callable[[int], unit.UnitScore], seeds: int = 12) -> None:
    """The score's 99 % interval over seeds holds the chance level."""
    scores = [score_of(seed) for seed in range(seeds)]
    excess = np.array([(s.score_S - s.chance_S).mean() for s in scores])
    half_width = 3.1 * excess.std(ddof=1) / np.sqrt(seeds)  # t(11) at 99 %
    assert abs(excess.mean()) <= half_width + 0.005
    assert np.mean([s.chance_S.mean() for s in scores]) > 0.01  # it did predict something


def test_foreground_on_shuffled_features_is_at_chance() -> None:
    big = [square_mask(HW, 8, 8, 64 + i, 72) for i in range(5)]  # half the image: p > 0.5 somewhere

    def score(seed: int) -> unit.UnitScore:
        g = torch.Generator().manual_seed(seed)
        features = [shuffled(f, g) for f in informative([*big, QUERY], seed)]
        return segmentation.score_episode(
            features[:5], big, [LAYOUT] * 5, features[5], QUERY, LAYOUT
        )

    at_chance(score)


def test_void_support_and_query_pixels_do_not_count() -> None:
    *support, query = informative([*SUPPORT, QUERY], 3)
    partly = [m.copy() for m in SUPPORT]
    for mask in partly:
        rows = np.flatnonzero(mask.any(1))
        mask[rows[10:]] = np.where(
            mask[rows[10:]] == 1, 255, 0
        )  # three quarters of the object void
    half_void = QUERY.copy()
    half_void[:48] = 255
    score = segmentation.score_episode(
        support, partly, [LAYOUT] * 5, query, half_void, LAYOUT, keep=1
    )
    assert (score.score_S > 0.6).all()  # void taken for background would outvote the object
    counts = metrics.overlap(score.kept, half_void)
    assert score.kept[:48].any()
    assert (score.inter_S[1], score.union_S[1]) == (counts.inter, counts.union)
    background = score.extra["inter_background"][1], score.extra["union_background"][1]
    assert background == (counts.inter_background, counts.union_background)


def test_supports_of_other_grids_and_chunks_of_sites_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *support, query = informative([*SUPPORT, QUERY], 5)
    layouts = [LAYOUT] * 4 + [grid_layout(HW, (6, 12), box=(0.0, 0.0, 96.0, 48.0))]
    support[4] = support[4][:, :6]
    whole = segmentation.score_episode(support, SUPPORT, layouts, query, QUERY, LAYOUT, keep=3)
    monkeypatch.setattr(unit, "MEMORY_ELEMENTS", 1)  # one site a chunk
    parts = segmentation.score_episode(support, SUPPORT, layouts, query, QUERY, LAYOUT, keep=3)
    assert parts.score_S == pytest.approx(whole.score_S, abs=1e-3)
    assert np.array_equal(parts.kept, whole.kept)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="sites and channels must agree"):
        segmentation.score_episode(
            [torch.zeros(2, *GRID, 3)], [QUERY], [LAYOUT], torch.zeros(2, *GRID, 4), QUERY, LAYOUT
        )
    with pytest.raises(ValueError, match=r"site index in 0\.\.1, got 2"):
        segmentation.score_sentence(
            torch.zeros(2, 3), torch.zeros(2, *GRID, 3), QUERY, LAYOUT, keep=2
        )


# --- by text
# ----------------------------------------------------------------------------------------


def test_otsu_equals_brute_force() -> None:
    x = torch.randn(4, 30) + torch.tensor([0.0, 3.0]).repeat(15)
    for row, got in zip(x, segmentation.otsu_threshold(x), strict=True):
        values = row.sort().values

        def between(t: torch.Tensor, row: torch.Tensor = row) -> float:
            low, high = row[row <= t], row[row > t]
            return float(len(low) * len(high) * (high.mean() - low.mean()) ** 2)

        best = max(values[:-1], key=between)
        assert (row > got).tolist() == (row > best).tolist()


def test_text_vector_finds_its_object_and_not_another() -> None:
    left, right = square_mask(HW, 30, 5, 40, 30), square_mask(HW, 30, 60, 40, 30)
    share = [grid.to_grid(m, LAYOUT).share_HW for m in (left, right)]
    f = torch.stack((*share, torch.ones(GRID)), dim=-1).expand(2, -1, -1, -1)
    text = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    score = segmentation.score_sentence(text, f, left, LAYOUT, keep=0)
    assert score.score_S[0] == pytest.approx(score.ceiling, abs=0.02)
    assert score.score_S[1] < 0.05
    assert (score.kept == (left > 0)).mean() > 0.97


def test_text_on_shuffled_features_is_at_chance() -> None:
    def score(seed: int) -> unit.UnitScore:
        g = torch.Generator().manual_seed(seed)
        (f,) = informative([QUERY], seed, sites=4)
        text = torch.randn(4, 32, generator=g)
        return segmentation.score_sentence(text, shuffled(f, g), QUERY, LAYOUT)

    at_chance(score)


def test_pixels_off_the_grid_are_background() -> None:
    layout = grid_layout((96, 160), GRID, box=(32.0, 0.0, 128.0, 96.0))
    mask = np.ones((96, 160), np.uint8)
    share = torch.zeros(GRID)
    share[:, 6:] = 1
    f = torch.stack((share, 1 - share), dim=-1)[None]
    score = segmentation.score_sentence(torch.tensor([[1.0, 0.0]]), f, mask, layout, keep=0)
    assert not score.kept[:, 128:].any() and not score.kept[:, :32].any()
    assert score.score_S[0] == pytest.approx(48 / 160)
    assert score.ceiling == pytest.approx(96 / 160)


def test_a_constant_map_predicts_nothing() -> None:
    score = segmentation.score_sentence(torch.ones(1, 2), torch.ones(1, *GRID, 2), QUERY, LAYOUT)
    assert score.score_S[0] == 0.0 and score.chance_S[0] == 0.0


# --- co-segmentation
# --------------------------------------------------------------------------------

CENTRAL = [square_mask(HW, 16 + 8 * (i % 3), 24, 40, 32) for i in range(5)]


def test_kmeans_recovers_separated_clusters_and_stops() -> None:
    g = torch.Generator().manual_seed(0)
    centres = functional.normalize(torch.randn(2, 4, 16, generator=g), dim=2)
    x = centres.repeat_interleave(40, dim=1) + 0.02 * torch.randn(2, 160, 16, generator=g)
    got = kmeans.grow_kmeans(functional.normalize(x, dim=2), restarts=3, generator=g)
    assert (got.k_SR >= 5).all()  # the 5th does not pay, and its labels are returned
    for s in range(2):
        for r in range(3):
            sets = [set(got.labels_SRN[s, r, 40 * c : 40 * c + 40].tolist()) for c in range(4)]
            assert all(a.isdisjoint(b) for i, a in enumerate(sets) for b in sets[:i])


def test_kmeans_objective_is_that_of_its_labels() -> None:
    x = functional.normalize(torch.randn(2, 70, 6), dim=2)
    got = kmeans.grow_kmeans(
        x, restarts=2, generator=torch.Generator().manual_seed(0), tolerance=0, lloyd_iterations=200
    )
    for s in range(2):
        for r in range(2):
            labels = got.labels_SRN[s, r]
            within = sum(
                (x[s, labels == c] - x[s, labels == c].mean(0)).square().sum()
                for c in labels.unique()
            )
            assert float(within) / 70 == pytest.approx(float(got.objective_SR[s, r]), abs=1e-4)


def test_kmeans_grows_as_plain_lloyd_does_from_the_same_draws() -> None:
    """One run at a time, all distances computed at every step."""
    seed, restarts, max_k = 3, 3, 6
    x_SNC = functional.normalize(torch.randn(2, 90, 5), dim=2)
    got = kmeans.grow_kmeans(
        x_SNC,
        restarts=restarts,
        generator=torch.Generator().manual_seed(seed),
        max_k=max_k,
        elbow=0.8,
        tolerance=0,
        lloyd_iterations=200,
    )
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.rand(restarts, generator=generator).tolist() for _ in range(max_k)]
    for s, x in enumerate(x_SNC.double()):
        for r in range(restarts):
            centres, objective = x.mean(0, keepdim=True), 2.0
            while True:
                distance = torch.cdist(x, centres).square()
                while True:
                    labels = distance.argmin(1)
                    centres = torch.stack([x[labels == c].mean(0) for c in range(len(centres))])
                    distance = torch.cdist(x, centres).square()
                    if torch.equal(distance.argmin(1), labels):
                        break
                nearest = distance.amin(1)
                previous, objective = objective, float(nearest.mean())
                if (objective > 0.8 * previous and len(centres) > 1) or len(centres) == max_k:
                    break
                cdf = nearest.cumsum(0)
                drawn = int((cdf <= draws[len(centres) - 1][r] * cdf[-1]).sum())
                centres = torch.cat((centres, x[drawn, None]))
            assert int(got.k_SR[s, r]) == len(centres) > 1
            assert torch.equal(got.labels_SRN[s, r], labels)
            assert float(got.objective_SR[s, r]) == pytest.approx(objective, abs=1e-6)


def score_group(
    images: list[torch.Tensor],
    masks: list[np.ndarray],
    layouts: list,
    keep: int | None = None,
    **how,
) -> unit.UnitScore:
    """Co-segmentation by one kind of features."""
    kept = None if keep is None else ("value", keep)
    return cosegmentation.score_group({"value": images}, masks, layouts, keep=kept, **how)["value"]


def test_cosegmentation_on_truth_as_features_reaches_the_ceiling() -> None:
    features = [one_hot((m > 0).astype(np.uint8)) for m in CENTRAL]
    sharp = [functional.one_hot((f[..., 0] < 0.5).long(), 2).float() for f in features]
    score = score_group(sharp, CENTRAL, [LAYOUT] * 5, keep=0)
    assert score.score_S == pytest.approx([score.ceiling] * 2, abs=0.03)
    assert (score.extra["precision"] > 0.97).all()
    assert score.extra["jaccard_SR"].shape == (2, 5)
    assert len(score.kept) == 5 and (score.kept[1] == (CENTRAL[1] > 0)).mean() > 0.97


def test_cosegmentation_needs_the_votes_of_three_quarters() -> None:
    masks = [*CENTRAL[:3], np.zeros(HW, np.uint8)]  # 3 of 4 images hold the object
    sharp = [functional.one_hot((one_hot(m)[..., 0] < 0.5).long(), 2).float() for m in masks]
    enough = score_group(sharp, masks, [LAYOUT] * 4)
    assert (enough.score_S > 0.8).all()  # the empty image, rightly left empty, counts 1
    too_few = score_group(sharp[1:], masks[1:], [LAYOUT] * 3)  # 2 of 3
    assert too_few.score_S == pytest.approx([1 / 3] * 2)


def test_cosegmentation_on_shuffled_features_is_at_chance() -> None:
    def score(seed: int) -> unit.UnitScore:
        g = torch.Generator().manual_seed(seed)
        sharp = [functional.one_hot((one_hot(m, sites=4)[..., 0] < 0.5).long(), 2) for m in CENTRAL]
        features = [shuffled(f.float(), g) for f in sharp]
        return score_group(features, CENTRAL, [LAYOUT] * 5, vote_share=0.5)

    at_chance(score)


def test_cosegmentation_does_not_depend_on_how_sites_are_batched() -> None:
    features = informative(CENTRAL, 0)
    batch = score_group(features, CENTRAL, [LAYOUT] * 5, seed=3)
    alone = score_group([f[1:2] for f in features], CENTRAL, [LAYOUT] * 5, seed=3)
    assert alone.extra["jaccard_SR"][0] == pytest.approx(batch.extra["jaccard_SR"][1], abs=1e-6)


def test_kinds_that_are_clustered_together_score_as_each_does_alone() -> None:
    g = torch.Generator().manual_seed(0)
    values, vision = informative(CENTRAL, 0), [f[:1] for f in informative(CENTRAL, 1)]
    place = [torch.randn(1, *f.shape[1:3], 3, generator=g) for f in values]  # of other channels
    kinds = {"vision": vision, "position": place, "value": values}
    together = cosegmentation.score_group(kinds, CENTRAL, [LAYOUT] * 5, keep=("value", 1))
    assert together.keys() == kinds.keys()
    for kind, images in kinds.items():
        alone = score_group(images, CENTRAL, [LAYOUT] * 5, keep=1 if kind == "value" else None)
        assert np.array_equal(together[kind].extra["jaccard_SR"], alone.extra["jaccard_SR"])
        assert np.array_equal(together[kind].extra["k"], alone.extra["k"])
        assert (together[kind].kept is None) == (kind != "value")
    for mask, truth in zip(together["value"].kept, alone.kept, strict=True):
        assert np.array_equal(mask, truth)
