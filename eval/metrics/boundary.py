"""The boundary measure F of DAVIS, for S predictions of one truth at once.

Rules of davisvideochallenge/davis2017-evaluation (``db_eval_boundary``): boundaries one pixel wide,
a boundary pixel is matched when the other boundary has a pixel within ceil(TOLERANCE * image
diagonal). Instead of dilating whole images by a disk, only the B boundary pixels look round
themselves: the disk is a stack of D horizontal runs, and a run is empty exactly when a row-wise
cumulative sum does not grow over it.
"""

from __future__ import annotations

import math

import torch

TOLERANCE = 0.008


def count_pixels(mask_SHW: torch.Tensor) -> torch.Tensor:
    """(S,) int32: true pixels of each bool mask; several times as fast as a sum of bools."""
    return mask_SHW.contiguous().view(torch.uint8).flatten(1).sum(1, dtype=torch.int32)


def boundary_map(mask_SHW: torch.Tensor) -> torch.Tensor:
    """(S, H, W) bool: pixels that differ from their east, south or south-east neighbour.

    Last row and column look only along themselves, and the last corner is never boundary, as in
    ``_seg2bmap`` of the reference.
    """
    m = mask_SHW.bool()
    boundary = torch.zeros_like(m)
    boundary[:, :-1, :-1] = (
        (m[:, :-1, :-1] ^ m[:, :-1, 1:])
        | (m[:, :-1, :-1] ^ m[:, 1:, :-1])
        | (m[:, :-1, :-1] ^ m[:, 1:, 1:])
    )
    boundary[:, -1, :-1] = m[:, -1, :-1] ^ m[:, -1, 1:]
    boundary[:, :-1, -1] = m[:, :-1, -1] ^ m[:, 1:, -1]
    return boundary


def boundary_f(predicted_SHW: torch.Tensor, truth_HW: torch.Tensor) -> torch.Tensor:
    """F in [0, 1] of each prediction, (S,) float64; both boundaries empty -> 1, one -> 0."""
    radius = math.ceil(TOLERANCE * math.hypot(*truth_HW.shape))
    predicted, truth = boundary_map(predicted_SHW), boundary_map(truth_HW[None])
    n_predicted, n_truth = count_pixels(predicted).double(), truth.sum().double()

    s, row, col = predicted.nonzero(as_tuple=True)
    near = _touches(_row_sums(truth), torch.zeros_like(s), row, col, radius)
    matched_predicted = torch.zeros_like(n_predicted).index_add_(0, s, near.double())

    _, row, col = truth.nonzero(as_tuple=True)
    n_sites = len(predicted)
    site = torch.arange(n_sites, device=row.device)[:, None].expand(-1, len(row))
    near = _touches(
        _row_sums(predicted), site, row.expand(n_sites, -1), col.expand(n_sites, -1), radius
    )
    matched_truth = near.double().sum(1)

    precision = torch.where(n_predicted > 0, matched_predicted / n_predicted.clamp(min=1), 1.0)
    recall = matched_truth / n_truth if n_truth > 0 else torch.ones_like(precision)
    # One side empty: the reference sets (precision, recall) to (1, 0) or (0, 1), so F is 0.
    precision = torch.where((n_predicted > 0) & (n_truth == 0), 0.0, precision)
    recall = torch.where((n_predicted == 0) & (n_truth > 0), 0.0, recall)
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total.clamp(min=1e-300), 0.0)


def _row_sums(boundary_SHW: torch.Tensor) -> torch.Tensor:
    """(S, H, W + 1) int32: number of boundary pixels left of each column edge."""
    sums = boundary_SHW.cumsum(2, dtype=torch.int32)
    return torch.nn.functional.pad(sums, (1, 0))


def _touches(
    sums: torch.Tensor, site: torch.Tensor, row: torch.Tensor, col: torch.Tensor, radius: int
) -> torch.Tensor:
    """True where the disk of that radius round (row, col) holds a boundary pixel of ``site``."""
    _, height, edges = sums.shape
    flat = sums.reshape(-1)
    found = torch.zeros_like(row, dtype=torch.bool)
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - dy * dy)
        y = row + dy
        base = (site * height + y.clamp(0, height - 1)) * edges
        run = (
            flat[base + (col + half + 1).clamp(max=edges - 1)]
            - flat[base + (col - half).clamp(min=0)]
        )
        found |= (run > 0) & (y >= 0) & (y < height)
    return found
