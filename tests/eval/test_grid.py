"""Between grid and pixels: exact areas, interpolation, crops, padding, sampling."""

import numpy as np
import pytest
import torch
from grids import grid_layout
from torch.nn import functional

from kvfix.eval import grid

GRID = (12, 12)
LAYOUT = grid_layout((96, 96), GRID)


# -------------------------------------------------------------------------------------------


def test_area_shares_are_exact_for_edges_inside_pixels() -> None:
    layout = grid_layout((6, 10), (4, 3), box=(1.25, 0.5, 8.75, 5.5))
    mask = (np.random.default_rng(0).random((6, 10)) < 0.5).astype(np.uint8)
    mask[2, 3] = 255
    got = grid.to_grid(mask, layout)
    fine = np.kron(mask, np.ones((40, 40)))  # every cell edge (0.025 px) falls on a sub-pixel edge
    rows, cols = np.split(fine[20:220, 50:350], 4, axis=0), 3
    for r, band in enumerate(rows):
        for c, cell in enumerate(np.split(band, cols, axis=1)):
            valid = cell != 255
            assert got.valid_HW[r, c] == pytest.approx(valid.mean(), abs=1e-6)
            assert got.share_HW[r, c] == pytest.approx((cell == 1).sum() / valid.sum(), abs=1e-6)


def test_padding_is_not_valid_area() -> None:
    layout = grid_layout((4, 8), (2, 2), box=(0.0, -2.0, 8.0, 6.0))
    got = grid.to_grid(np.ones((4, 8), np.uint8), layout)
    assert torch.equal(got.valid_HW, torch.full((2, 2), 0.5))
    assert torch.equal(got.share_HW, torch.ones(2, 2))


def test_upsampling_equals_interpolate_on_the_whole_image() -> None:
    maps = torch.randn(3, 5, 7)
    layout = grid_layout((30, 63), (5, 7))
    expected = functional.interpolate(maps[None], size=(30, 63), mode="bilinear")[0]
    assert torch.allclose(grid.to_pixels(maps, layout), expected, atol=1e-6)


def test_upsampling_respects_a_centre_crop() -> None:
    maps = torch.randn(1, 4, 4)
    layout = grid_layout((20, 32), (4, 4), box=(8.0, 2.0, 24.0, 18.0))
    expected = functional.interpolate(maps[None], size=(16, 16), mode="bilinear")[0]
    got = grid.to_pixels(maps, layout, outside=-9.0)
    assert torch.allclose(got[:, 2:18, 8:24], expected, atol=1e-6)
    outside = torch.ones(20, 32, dtype=torch.bool)
    outside[2:18, 8:24] = False
    assert (got[:, outside] == -9.0).all()
    edge = grid.to_pixels(maps, layout)
    assert torch.allclose(edge[:, 0, 8:24], edge[:, 2, 8:24])


def test_sampling_at_a_cell_centre_returns_the_cell_and_clamps_outside() -> None:
    f = torch.randn(2, *GRID, 5)
    xy = grid.cell_centres(LAYOUT)[[3, 11], [7, 0]]
    got = grid.sample_cells(f, grid.to_cells(xy, LAYOUT))
    assert torch.allclose(got, f[:, [3, 11], [7, 0]], atol=1e-6)
    corner = grid.sample_cells(f, grid.to_cells(np.array([[-50.0, 500.0]]), LAYOUT))
    assert torch.allclose(corner[:, 0], f[:, 11, 0], atol=1e-6)
    half_way = grid.sample_cells(f, torch.tensor([[2.5, 4.0]], dtype=torch.float64))
    assert torch.allclose(half_way[:, 0], (f[:, 2, 4] + f[:, 3, 4]) / 2, atol=1e-6)
    one_row = grid.sample_cells(f[:, :1], torch.tensor([[0.4, 2.25]], dtype=torch.float64))
    assert torch.allclose(one_row[:, 0], 0.75 * f[:, 0, 2] + 0.25 * f[:, 0, 3], atol=1e-6)


def test_position_features_tell_every_cell_apart_and_ignore_the_image() -> None:
    f = grid.position_features(LAYOUT)
    assert f.shape == (1, *GRID, 16)
    distance = torch.cdist(f.flatten(1, 2), f.flatten(1, 2))[0]
    assert (distance + 9 * torch.eye(144)).min() > 0.1
    twice = grid.position_features(grid_layout((192, 192), GRID))
    assert torch.allclose(f, twice)


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(96, 96\), got \(95, 96\)"):
        grid.to_grid(np.zeros((95, 96), np.uint8), LAYOUT)
