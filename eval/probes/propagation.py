"""Mask propagation by feature similarity: the label propagation of DINO, for S sites at once.

Shapes: S sites, H x W grid cells, C channels, L labels (background first), T context frames.

Recipe of facebookresearch/dino ``eval_video_segmentation.py``: context = the first frame (truth)
and the last 7 predictions; affinity exp(cos / 0.1) inside a window; the top 5 over ALL context
patches jointly; renormalise. Ties with the fifth are kept, as there (aff < minimum is dropped).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from kvfix.eval.grid import fill_outside, to_pixels
from kvfix.eval.probes.score import site_chunks
from kvfix.mlm.layout import Layout


class Window(NamedTuple):
    """How far a patch looks, in cells: ``rows`` up and down, ``columns`` left and right."""

    rows: int
    columns: int


DINO_WINDOW = Window(12, 12)
DINO_GRID_HW = (60, 107)  # 480 x 854 in patches of 8
SMALL_GRID = 256  # cells, all of whose affinities cost less than bands would
BAND = 64  # target cells at a time: fewer make products slow, more see further than they need


def scaled_window(grid_hw: tuple[int, int]) -> Window:
    """DINO's window as the same share of another grid, at least one cell each way."""
    return Window(
        max(1, round(DINO_WINDOW.rows * grid_hw[0] / DINO_GRID_HW[0])),
        max(1, round(DINO_WINDOW.columns * grid_hw[1] / DINO_GRID_HW[1])),
    )


class Propagator:
    """Streams a clip: holds the features and soft labels of the first and the last frames only.

    Features are held in the model's own number format, and made float32 and of length 1 for a few
    sites at a time: of a 7B model all layers of eight frames would else take 22 GB.

    Labels sum to 1 over L; `window` is the cells a patch may look, None ``scaled_window``; `n_last`
    is how many past predictions stand in the context beside the first frame, of whose patches
    `top_k` count; `temperature` is of the cosine.
    """

    def __init__(
        self,
        first_SHWC: torch.Tensor,
        labels_LHW: torch.Tensor,
        *,
        window: Window | None = None,
        n_last: int = 7,
        top_k: int = 5,
        temperature: float = 0.1,
    ) -> None:
        n_sites, rows, cols, _ = first_SHWC.shape
        if tuple(labels_LHW.shape[1:]) != (rows, cols):
            raise ValueError(f"labels must be (L, {rows}, {cols}), got {tuple(labels_LHW.shape)}")
        self.window = scaled_window((rows, cols)) if window is None else window
        self.top_k, self.temperature = top_k, temperature
        labels = labels_LHW.to(first_SHWC.device, torch.float32)
        self._first = (_held(first_SHWC), labels.expand(n_sites, *labels.shape))
        self._last: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=n_last)

    def step(self, f_SHWC: torch.Tensor) -> torch.Tensor:
        """Soft labels (S, L, H, W) of the next frame, which joins the context."""
        if f_SHWC.shape != self._first[0].shape:
            raise ValueError(
                f"all frames of a clip need one grid: first {tuple(self._first[0].shape)}, now "
                f"{tuple(f_SHWC.shape)}"
            )
        target = _held(f_SHWC)
        context = [self._first, *self._last]
        soft = torch.empty_like(self._first[1], memory_format=torch.contiguous_format)
        for part in site_chunks(len(target), len(context) * target[0].numel()):
            sources = [_unit(f[part]) for f, _ in context]
            labels = torch.stack([label[part] for _, label in context], dim=1)  # (s, T, L, H, W)
            soft[part] = self._propagate(_unit(target[part]), sources, labels)
        self._last.append((target, soft))
        return soft

    def _propagate(
        self, target_SHWC: torch.Tensor, sources: Sequence[torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        n_sites, rows, columns, _ = target_SHWC.shape
        soft = torch.empty_like(labels[:, 0], memory_format=torch.contiguous_format)
        # A band of target rows sees only the source rows in its windows. Whole rows of features lie
        # in one piece: smaller tiles would form fewer affinities, but copy all that they see.
        for band, near in _bands(rows, columns, self.window.rows):
            seen_QP = _window_mask(band, near, columns, self.window)
            n_targets, n_seen = seen_QP.shape
            for part in site_chunks(n_sites, len(sources) * n_seen * n_targets):
                soft[part, :, band] = self._band(
                    target_SHWC[part, band].flatten(1, 2),
                    [source[part, near].flatten(1, 2) for source in sources],
                    labels[part, ..., near, :].transpose(2, 1).flatten(2),
                    seen_QP.to(soft.device),
                ).unflatten(2, (-1, columns))
        return soft

    def _band(
        self,
        target_SQC: torch.Tensor,
        sources: Sequence[torch.Tensor],
        labels: torch.Tensor,
        seen_QP: torch.Tensor,
    ) -> torch.Tensor:
        """Soft labels (S, L, Q) of targets from the (S, P, C) of T frames and their labels (S, L, T
        P).
        """
        affinity = torch.cat([torch.bmm(target_SQC, f_SPC.mT) for f_SPC in sources], dim=2)
        affinity = affinity.div_(self.temperature).exp_()
        affinity.unflatten(2, (len(sources), -1)).mul_(seen_QP[:, None])
        k = min(self.top_k, affinity.shape[2])
        fifth = affinity.topk(k, dim=2).values[..., -1:]
        affinity = affinity.masked_fill_(affinity < fifth, 0)
        affinity = affinity.div_(affinity.sum(2, keepdim=True))
        return torch.bmm(labels, affinity.mT)


def _held(f_SHWC: torch.Tensor) -> torch.Tensor:
    """Features to hold: of length 1 already where that takes no more room."""
    return functional.normalize(f_SHWC, dim=-1) if f_SHWC.dtype == torch.float32 else f_SHWC


def _unit(f_SHWC: torch.Tensor) -> torch.Tensor:
    """Held features as float32, of length 1."""
    if f_SHWC.dtype == torch.float32:
        return f_SHWC
    return functional.normalize(f_SHWC.float(), dim=-1)


def _bands(rows: int, columns: int, reach: int) -> Iterator[tuple[slice, slice]]:
    """Slices of target rows, each with the rows that its windows reach; a small grid is one."""
    step = rows if rows * columns <= SMALL_GRID else max(1, BAND // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield slice(start, stop), slice(max(0, start - reach), min(rows, stop + reach))


def _window_mask(target: slice, source: slice, columns: int, window: Window) -> torch.Tensor:
    """(target cells, source cells) of these rows, float 0/1: the source lies in the target's
    window.
    """
    across = torch.arange(columns)
    near_rows = (_cells(target)[:, None] - _cells(source)).abs() <= window.rows
    near_columns = (across[:, None] - across).abs() <= window.columns
    near_QP = near_rows[:, None, :, None] & near_columns[None, :, None, :]
    return near_QP.flatten(2).flatten(0, 1).float()


def _cells(part: slice) -> torch.Tensor:
    return torch.arange(part.start, part.stop)


def _first_argmax(maps_SLHW: torch.Tensor) -> torch.Tensor:
    """Argmax over labels, the first of equals; far quicker than argmax along an inner axis."""
    best = maps_SLHW[:, 0].clone()
    winner = torch.zeros_like(best, dtype=torch.uint8)
    for label in range(1, maps_SLHW.shape[1]):
        winner.masked_fill_(maps_SLHW[:, label] > best, label)
        best = torch.maximum(best, maps_SLHW[:, label])
    return winner


def hard_labels(soft_SLHW: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Soft grid labels -> (S, height, width) uint8: upsample, min-max each label's map, argmax.

    The min-max lifts small objects whose soft labels never reach those of the background
    (``norm_mask`` of the reference). Pixels that the grid does not span are background.
    """
    n_labels = soft_SLHW.shape[1]
    height, width = layout.image_hw
    out = torch.empty(len(soft_SLHW), height, width, dtype=torch.uint8, device=soft_SLHW.device)
    for part in site_chunks(len(soft_SLHW), 3 * n_labels * height * width):
        maps = to_pixels(soft_SLHW[part].flatten(0, 1), layout).unflatten(0, (-1, n_labels))
        low = maps.amin((2, 3), keepdim=True)
        peak = maps.amax((2, 3), keepdim=True)
        span = peak - low
        # A constant map would be 0 / 0: a label that fills the frame counts 1, an absent one 0.
        flat = span <= 1e-6 * peak
        scaled = maps.sub_(low).div_(span)
        if bool(flat.any()):
            scaled = torch.where(flat, (peak > 0).float(), scaled)
        out[part] = _first_argmax(scaled)
    fill_outside(out, layout, 0)
    return out
