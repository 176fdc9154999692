"""Correspondence probes: keypoints between two images, masks through a clip.

Shapes: S sites at once, H x W grid cells, height x width pixels, C channels, K keypoints, O
objects.

Protocols (arXiv 2510.04819; what it leaves open is filled in as stated here):
  semantic   SPair-71k: bilinear feature at each source keypoint; the centre of the target cell of
             the highest cosine is the prediction; PCK at 0.1 of the target box's longer side,
             distance <= radius. Chance: a target cell drawn at random. Ceiling: the cell nearest to
             the truth (strict).
  temporal   DAVIS-2017, semi-supervised, with DINO's label propagation (see ``propagation``); J and
             F per object over all frames but the first and the last; J&F = their mean. Baseline in
             place of chance: the first mask, never moved. Ceiling: each frame's truth as area
             shares on the grid, decoded like a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from kvfix.data.units import VOID
from kvfix.eval.grid import PIXEL_CENTRE, cell_centres, check_mask, sample_cells, to_cells, to_grid
from kvfix.eval.metrics.boundary import boundary_f
from kvfix.eval.metrics.davis import decay, recall, region_j
from kvfix.eval.metrics.points import box_size, correct_points
from kvfix.eval.probes.propagation import Propagator, Window, hard_labels
from kvfix.eval.probes.score import UnitScore, check_keep, check_sites, site_chunks
from kvfix.mlm.layout import Layout


def match_cells(
    source_SHWC: torch.Tensor,
    source_layout: Layout,
    source_xy: np.ndarray,
    target_SHWC: torch.Tensor,
    target_layout: Layout,
) -> torch.Tensor:
    """(S, K, 2) float64 (x, y) in target pixels: the centre of the cell of the highest cosine."""
    n_sites = check_sites(source_SHWC, target_SHWC)
    xy = torch.as_tensor(np.asarray(source_xy, dtype=np.float64)) + PIXEL_CENTRE
    centres = cell_centres(target_layout).flatten(0, 1) - PIXEL_CENTRE
    best = []
    for part in site_chunks(n_sites, 2 * target_SHWC[0].numel()):
        query = functional.normalize(
            sample_cells(source_SHWC[part], to_cells(xy, source_layout)), dim=-1
        )
        cells = functional.normalize(target_SHWC[part].flatten(1, 2).float(), dim=-1)
        best.append(torch.bmm(query, cells.mT).argmax(2).cpu())
    return centres[torch.cat(best)]


def score_pair(
    source_SHWC: torch.Tensor,
    source_layout: Layout,
    source_xy: np.ndarray,
    target_SHWC: torch.Tensor,
    target_layout: Layout,
    target_xy: np.ndarray,
    target_box: Sequence[float],
    *,
    keep: int | None = None,
) -> UnitScore:
    """Semantic correspondence of one pair, at the same K keypoints in pixels of each image.

    Keypoints are (K, 2), pixel centres at integers; the box is x0, y0, x1, y1 of the object in the
    target; the PCK radius is a tenth of its longer side. PCK of the pair ("per image"); ``extra``:
    ``correct`` (S,) and ``points`` (S,) counts, from which the pooled "per point" PCK follows; of
    the site ``keep`` the (K, 2) predicted points come back in ``kept``.
    """
    n_sites = check_sites(source_SHWC, target_SHWC)
    check_keep(keep, n_sites)
    truth = torch.as_tensor(np.asarray(target_xy, dtype=np.float64))
    if len(truth) == 0 or len(truth) != len(source_xy):
        raise ValueError(
            f"a pair needs the same keypoints on both sides, at least one; got {len(source_xy)} "
            f"and {len(truth)}"
        )
    radius = 0.1 * box_size(target_box)
    found = match_cells(source_SHWC, source_layout, source_xy, target_SHWC, target_layout)
    correct_S = correct_points(found.numpy(), truth.numpy(), radius).astype(np.float64)
    centres = cell_centres(target_layout).flatten(0, 1) - PIXEL_CENTRE
    within_KN = torch.cdist(truth, centres) <= radius
    return UnitScore(
        correct_S / len(truth),
        np.full(n_sites, float(within_KN.double().mean())),
        float(within_KN.any(1).double().mean()),
        extra={"correct": correct_S, "points": np.full(n_sites, float(len(truth)))},
        kept=None if keep is None else found[keep].numpy(),
    )


def object_shares(mask: np.ndarray, layout: Layout, n_objects: int) -> torch.Tensor:
    """(1 + O, H, W) float32 area shares of background and objects in each cell, summing to 1.

    DINO samples the first mask at patch centres instead. Its patches are 8 px wide; under the wide
    cells of a language model's grid a thin object would vanish, so the area counts here.
    """
    shares = [to_grid(mask == i, layout).share_HW for i in range(1, n_objects + 1)]
    objects = torch.stack(shares)
    return torch.cat((1 - objects.sum(0, keepdim=True), objects))


def _objects(mask: np.ndarray | torch.Tensor, layout: Layout) -> np.ndarray:
    labels = check_mask(mask, layout).numpy()
    return np.where(labels == VOID, 0, labels)  # DAVIS: void is background


def _jf_frame(predicted_SHW: torch.Tensor, truth: np.ndarray, n_objects: int) -> np.ndarray:
    """(2, S, O) float64: J and F of one frame."""
    gold = torch.as_tensor(truth).to(predicted_SHW.device)
    out = np.empty((2, len(predicted_SHW), n_objects))
    height, width = gold.shape
    for o in range(n_objects):
        true = gold == o + 1
        for part in site_chunks(len(predicted_SHW), 4 * height * width):
            mine = predicted_SHW[part] == o + 1
            out[0, part, o] = region_j(mine, true).cpu().numpy()
            out[1, part, o] = boundary_f(mine, true).cpu().numpy()
    return out


class ClipScorer:
    """Temporal correspondence of one clip, frame by frame: holds nine frames' features at most.

    All kinds of features are measured together against a frame's truth, and so are the first mask
    that never moves (chance) and the truth seen through the grid (ceiling). One layout serves every
    frame; the first mask is (height, width) integer labels, 0 background, 1..O objects, 255 = void.
    `window` is the cells a patch may look; None scales DINO's 12 of 60 x 107 to the grid. Of the
    kind and site `keep` the labels come back in ``kept``: one (height, width) uint8 for each frame,
    first the given.
    """

    def __init__(
        self,
        first: Mapping[str, torch.Tensor],
        layout: Layout,
        first_mask: np.ndarray,
        *,
        window: Window | None = None,
        keep: tuple[str, int] | None = None,
    ) -> None:
        self._n_sites = {kind: check_sites(f_SHWC) for kind, f_SHWC in first.items()}
        if keep is not None:
            check_keep(keep[1], self._n_sites[keep[0]])
        self.layout, self.keep = layout, keep
        mask = _objects(first_mask, layout).astype(np.uint8)
        self.n_objects = int(mask.max())
        if self.n_objects == 0:
            raise ValueError(
                "the first mask of a clip must hold at least one object, got background only"
            )
        labels = object_shares(mask, layout, self.n_objects)
        self._propagators = {k: Propagator(f, labels, window=window) for k, f in first.items()}
        self._static = torch.as_tensor(mask)[None]
        self._kept = [mask]
        self._measured: list[np.ndarray] = []

    def step(self, features: Mapping[str, torch.Tensor], mask: np.ndarray) -> None:
        """Propagate to the next frame and measure by its truth, but for labels new in it."""
        truth = _objects(mask, self.layout)
        predicted = {
            kind: hard_labels(propagator.step(features[kind]), self.layout)
            for kind, propagator in self._propagators.items()
        }
        best = hard_labels(object_shares(truth, self.layout, self.n_objects)[None], self.layout)
        every = [*predicted.values(), self._static, best]
        device = every[0].device
        together = torch.cat([labels.to(device) for labels in every])
        self._measured.append(_jf_frame(together, truth, self.n_objects))
        if self.keep is not None:
            kind, site = self.keep
            self._kept.append(predicted[kind][site].cpu().numpy())

    def result(self) -> dict[str, UnitScore]:
        """J&F of each kind, mean over objects, once a frame was measured.

        ``extra``: ``J_SO``, ``F_SO`` (mean over frames, an object), ``J_recall_SO``,
        ``J_decay_SO``, ``F_recall_SO``, ``F_decay_SO``, and ``window`` (rows, columns) as used.
        Average objects, not clips, for the official figure.
        """
        if not self._measured:
            raise ValueError("a clip needs at least 3 frames (the first and last do not count)")
        jf_T2SO = np.stack(self._measured)
        static, best = float(np.mean(jf_T2SO[:, :, -2])), float(np.mean(jf_T2SO[:, :, -1]))
        scores, start = {}, 0
        for kind, n_sites in self._n_sites.items():
            of_kind = jf_T2SO[:, :, start : start + n_sites]
            scores[kind] = self._score(kind, of_kind, static, best)
            start += n_sites
        return scores

    def _score(self, kind: str, jf_T2SO: np.ndarray, static: float, best: float) -> UnitScore:
        j_SO, f_SO = jf_T2SO.mean(0)
        return UnitScore(
            ((j_SO + f_SO) / 2).mean(1),
            np.full(len(j_SO), static),
            best,
            extra={
                "J_SO": j_SO,
                "F_SO": f_SO,
                "J_recall_SO": recall(jf_T2SO[:, 0]),
                "F_recall_SO": recall(jf_T2SO[:, 1]),
                "J_decay_SO": decay(jf_T2SO[:, 0]),
                "F_decay_SO": decay(jf_T2SO[:, 1]),
                "window": np.asarray(self._propagators[kind].window),
            },
            kept=tuple(self._kept) if self.keep is not None and self.keep[0] == kind else None,
        )
