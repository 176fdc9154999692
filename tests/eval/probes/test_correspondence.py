"""Correspondence probes: known answers, chance, and DINO's propagation on carried numbers."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from clips import score_clip
from grids import grid_layout, shuffled, square_mask
from torch.nn import functional

from kvfix.eval import metrics
from kvfix.eval.grid import cell_centres
from kvfix.eval.probes import correspondence, propagation
from kvfix.eval.probes import score as unit
from kvfix.eval.probes.propagation import Propagator, Window, hard_labels
from kvfix.mlm.layout import Layout

HW, GRID = (96, 96), (12, 12)
LAYOUT = grid_layout(HW, GRID)


def cell_codes(sites: int = 3, channels: int = 64, seed: int = 0) -> torch.Tensor:
    """A random code for every cell: each matches itself only."""
    return torch.randn(sites, *GRID, channels, generator=torch.Generator().manual_seed(seed))


# --- semantic
# ---------------------------------------------------------------------------------------


def test_points_follow_their_features_to_the_right_pixel() -> None:
    f = cell_codes()
    moved = torch.roll(f, (2, 3), dims=(1, 2))
    target_layout = grid_layout((192, 48), GRID)
    rows, cols = np.array([1, 5, 8]), np.array([0, 4, 7])
    source = cell_centres(LAYOUT)[rows, cols].numpy() - 0.5
    target = cell_centres(target_layout)[rows + 2, cols + 3].numpy() - 0.5
    score = correspondence.score_pair(
        f, LAYOUT, source, moved, target_layout, target, (0, 0, 40, 80), keep=2
    )
    assert score.score_S == pytest.approx([1.0] * 3) and score.ceiling == 1.0
    assert score.kept == pytest.approx(target)
    assert score.extra["correct"].tolist() == [3.0] * 3


def test_pck_radius_is_a_share_of_the_longer_side_bound_included() -> None:
    f = cell_codes(1)
    source = cell_centres(LAYOUT)[[4, 7], [4, 7]].numpy() - 0.5
    target = source + np.array([[6.0, 8.0], [6.0, 8.0001]])  # 10 px and a little more
    at = correspondence.score_pair(f, LAYOUT, source, f, LAYOUT, target, (0, 0, 20, 100))
    assert at.score_S[0] == 0.5
    assert at.extra["points"][0] == 2.0


def test_points_on_shuffled_features_are_at_chance() -> None:
    g = torch.Generator().manual_seed(0)
    source = cell_centres(LAYOUT)[2:10:2, 1:11:2].reshape(-1, 2).numpy() - 0.5
    box = (8.0, 8.0, 88.0, 88.0)
    shares, chance = [], 0.0
    for seed in range(10):
        f = cell_codes(8, seed=seed)
        score = correspondence.score_pair(f, LAYOUT, source, shuffled(f, g), LAYOUT, source, box)
        shares.append(score.score_S.mean())
        chance = score.chance_S[0]
    half_width = 3.25 * np.std(shares, ddof=1) / np.sqrt(10)  # t(9) at 99 %
    assert abs(np.mean(shares) - chance) <= half_width + 1e-9
    # 8 px radius, 8 px cells, truth on a centre: the cell itself and four neighbours exactly on the
    # bound.
    assert chance == pytest.approx(5 / 144)


def test_ceiling_counts_points_that_no_cell_can_reach() -> None:
    crop = grid_layout((96, 160), GRID, box=(32.0, 0.0, 128.0, 96.0))
    xy = np.array([[5.0, 48.0], [80.0, 48.0]])
    score = correspondence.score_pair(
        cell_codes(), LAYOUT, xy, cell_codes(), crop, xy, (0, 0, 60, 60)
    )
    assert score.ceiling == 0.5
    with pytest.raises(ValueError, match="at least one; got 0 and 0"):
        correspondence.score_pair(
            cell_codes(), LAYOUT, xy[:0], cell_codes(), crop, xy[:0], (0, 0, 60, 60)
        )


# --- propagation
# ------------------------------------------------------------------------------------


def propagate_by_loop(
    frames: torch.Tensor, labels: torch.Tensor, radius: int, n_last: int, top_k: int
) -> list[torch.Tensor]:
    """The rules one patch at a time in float64.

    Takes (T, H, W, C) and (L, H, W), returns the soft labels of frames 1..T-1.
    """
    _, rows, cols, _ = frames.shape
    f = functional.normalize(frames.double(), dim=-1)
    soft = [labels.double()]
    for t in range(1, len(f)):
        context = [0, *range(max(1, t - n_last), t)]
        out = torch.zeros_like(soft[0])
        for r in range(rows):
            for c in range(cols):
                seen = [
                    (torch.exp(f[t, r, c] @ f[s, y, x] / 0.1), soft[s][:, y, x])
                    for s in context
                    for y in range(max(0, r - radius), min(rows, r + radius + 1))
                    for x in range(max(0, c - radius), min(cols, c + radius + 1))
                ]
                seen.sort(key=lambda pair: -float(pair[0]))
                kept = [pair for pair in seen if pair[0] >= seen[min(top_k, len(seen)) - 1][0]]
                total = sum(a for a, _ in kept)
                out[:, r, c] = sum(a * label for a, label in kept) / total
        soft.append(out)
    return soft[1:]


def random_clip(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    frames = torch.randn(1, 4, 5, 6, generator=g) + 0.5 * torch.randn(11, 4, 5, 6, generator=g)
    labels = functional.one_hot(torch.randint(0, 3, (4, 5), generator=g), 3).permute(2, 0, 1)
    return frames, labels.float()


@pytest.mark.parametrize("reach", [1, 2, 9])
def test_propagation_equals_a_plain_loop(reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, labels = random_clip()
    expected = propagate_by_loop(frames, labels, reach, 7, 5)
    monkeypatch.setattr(propagation, "SMALL_GRID", 0)
    for band in (20, 5, 15):  # cells worked on at once, of 4 x 5
        monkeypatch.setattr(propagation, "BAND", band)
        p = Propagator(frames[:1], labels, window=Window(reach, reach))
        for frame, right in zip(frames[1:], expected, strict=True):
            assert torch.allclose(p.step(frame[None])[0].double(), right, atol=1e-5)


def wave_clip(frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Angle 0.37 i + 0.29 j + 0.1414 t (i + 1)(j + 1); label 1 is the left column."""
    i, j = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    drift = 0.1414 * (i + 1) * (j + 1)
    angle = torch.stack([0.37 * i + 0.29 * j + t * drift for t in range(frames)])
    left = (j == 0).float()
    return torch.stack((angle.cos(), angle.sin()), dim=-1), torch.stack((1 - left, left))


# Soft label 1 of frames 1..3, window 1, top 5, last 7, by the rules of facebookresearch/dino
# (eval_video_segmentation.py: label_propagation) worked out one patch at a time in float64.
WAVE_LABELS = [
    [[0.5901, 0.206544, 0.0], [0.344672, 0.029644, 0.0]],
    [[0.549029, 0.067197, 0.011388], [0.207233, 0.004797, 0.000176]],
    [[0.432341, 0.057728, 0.005365], [0.105448, 0.001287, 0.000177]],
]


def test_propagation_keeps_its_numbers() -> None:
    frames, labels = wave_clip()
    p = Propagator(frames[:1], labels, window=Window(1, 1))
    for frame, right in zip(frames[1:], WAVE_LABELS, strict=True):
        soft = p.step(frame[None])[0]
        assert torch.allclose(soft[1], torch.tensor(right), atol=1e-4)
        assert torch.allclose(soft.sum(0), torch.ones(2, 3), atol=1e-6)


def test_window_scales_with_the_grid_and_is_recorded() -> None:
    assert propagation.scaled_window((60, 107)) == (12, 12)
    assert propagation.scaled_window((27, 27)) == (5, 3)
    assert propagation.scaled_window((2, 2)) == (1, 1)


def test_hard_labels_by_hand() -> None:
    layout = grid_layout((2, 4), (1, 2))
    soft = torch.tensor([[[[0.9, 0.6]], [[0.1, 0.2]], [[0.0, 0.2]]]])
    # Min-max lifts the small second label where it peaks; equal peaks go to the first label.
    assert hard_labels(soft, layout)[0].tolist() == [[0, 0, 1, 1]] * 2
    filled = torch.tensor([[[[0.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]]])
    assert hard_labels(filled, layout).unique().tolist() == [1]
    crop = grid_layout((2, 8), (1, 2), box=(2.0, 0.0, 6.0, 2.0))
    assert hard_labels(filled, crop)[0, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


# --- clips
# ------------------------------------------------------------------------------------------


def moving_clip(frames: int = 6) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Two objects that move one cell a frame; features follow them (one code a label and cell)."""
    masks, features = [], []
    codes = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)) * 4
    for t in range(frames):
        mask = square_mask(HW, 16, 8 * t, 24, 24)
        mask[56:88, 64 - 8 * t : 88 - 8 * t] = 2
        masks.append(mask)
        cells = torch.as_tensor(mask[4::8, 4::8].copy()).long()
        features.append(codes[cells].expand(2, -1, -1, -1))
    return features, masks


def stream(features: list[torch.Tensor]) -> Iterator[tuple[torch.Tensor, Layout]]:
    for f in features:
        yield f, LAYOUT


def test_moving_objects_are_followed_up_to_the_ceiling() -> None:
    features, masks = moving_clip()
    score = score_clip(stream(features), masks, keep=1, window=Window(2, 2))
    assert score.score_S == pytest.approx([score.ceiling] * 2, abs=0.02)
    assert score.ceiling > 0.85
    assert (score.chance_S < 0.6).all()  # the first mask, never moved
    assert score.extra["J_SO"].shape == (2, 2) and score.extra["window"].tolist() == [2, 2]
    assert len(score.kept) == 5 and np.array_equal(score.kept[0], masks[0])
    assert (score.kept[3] == masks[3]).mean() > 0.95


def test_clip_scores_are_those_of_the_metrics_on_what_was_kept() -> None:
    features, masks = moving_clip()
    g = torch.Generator().manual_seed(1)
    noisy = [f + 3 * torch.randn(f.shape, generator=g) for f in features]
    masks[0][-4:] = masks[2][:4] = 255
    score = score_clip(stream(noisy), masks, keep=0)
    objects = metrics.davis_objects([*score.kept, np.zeros(HW, np.uint8)], masks)
    assert score.score_S[0] == pytest.approx(np.mean([o.jf for o in objects]))
    assert score.extra["F_SO"][0] == pytest.approx([o.f_mean for o in objects])
    assert score.extra["J_decay_SO"][0] == pytest.approx([o.j_decay for o in objects])
    assert score.extra["F_recall_SO"][0] == pytest.approx([o.f_recall for o in objects])


def test_shuffled_clip_falls_far_below_the_true_one_and_the_static_mask() -> None:
    features, masks = moving_clip()
    g = torch.Generator().manual_seed(0)
    noise = [shuffled(f + torch.randn(f.shape, generator=g), g) for f in features]
    score = score_clip(stream(noise), masks)
    assert (score.score_S < score.chance_S).all()


def test_a_still_clip_keeps_its_baseline_at_one() -> None:
    features, masks = moving_clip()
    score = score_clip(stream(features[:1] * 4), masks[:1] * 4)
    assert score.chance_S == pytest.approx([1.0] * 2)
    assert score.score_S == pytest.approx([score.ceiling] * 2, abs=0.02)


def test_context_is_the_first_and_the_last_seven_frames_and_the_last_is_never_asked_for() -> None:
    features, masks = moving_clip(6)
    asked = []

    def counting() -> Iterator[tuple[torch.Tensor, Layout]]:
        for i, item in enumerate(stream(features)):
            asked.append(i)
            yield item

    score_clip(counting(), masks)
    assert asked == [0, 1, 2, 3, 4]
    p = Propagator(features[0], torch.ones(1, *GRID))
    for _ in range(9):
        p.step(features[0])
    assert len(p._last) == 7


def test_clips_that_cannot_be_scored_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    features, masks = moving_clip()
    with pytest.raises(ValueError, match="at least 3 frames"):
        score_clip(stream(features), masks[:2])
    with pytest.raises(ValueError, match="6 masks but only 2 frames"):
        score_clip(stream(features[:2]), masks)
    with pytest.raises(ValueError, match="at least one object"):
        score_clip(stream(features), [masks[0] * 0] * 3)
    with pytest.raises(ValueError, match="one grid"):
        score_clip(stream([features[0], features[1][:, :6]]), masks)
    whole = score_clip(stream(features), masks)
    monkeypatch.setattr(unit, "MEMORY_ELEMENTS", 1)
    parts = score_clip(stream(features), masks)
    assert parts.score_S == pytest.approx(whole.score_S, abs=1e-9)
