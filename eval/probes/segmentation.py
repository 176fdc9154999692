"""Segmentation probes: few-shot foreground, and segmentation by a text vector.

Shapes: S sites at once, H x W grid cells, height x width pixels, C channels, N patches.

Protocols (arXiv 2510.04819; what it leaves open is filled in as stated here):
  foreground   an L2 logistic regression per episode on the support's patches, labels = share of the
               cell that the mask fills; Pascal-5i rule for void (255 counts nowhere).
  by text      the dot product of a text vector with the patches, Otsu's threshold on the grid.

Chance of an IoU: expected intersection over expected union of as many foreground pixels as were
predicted, placed anywhere at random. Ceiling: the truth's own area shares, upsampled, above 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from kvfix.data.units import VOID
from kvfix.eval.grid import GridMask, check_mask, to_grid, to_pixels
from kvfix.eval.metrics.boundary import count_pixels
from kvfix.eval.probes.logistic import fit_logistic, fit_standardiser
from kvfix.eval.probes.score import UnitScore, check_keep, check_sites, site_chunks
from kvfix.mlm.layout import Layout

Mask = np.ndarray | torch.Tensor


class _Counts(NamedTuple):
    """Pixel counts over the valid pixels of one image, float64: prediction per site, truth once."""

    inter_S: np.ndarray
    predicted_S: np.ndarray
    truth: float
    valid: float

    @property
    def union_S(self) -> np.ndarray:
        return self.predicted_S + self.truth - self.inter_S

    @property
    def iou_S(self) -> np.ndarray:
        return _ratio(self.inter_S, self.union_S)

    @property
    def chance_S(self) -> np.ndarray:
        inter = self.predicted_S * self.truth / max(self.valid, 1.0)
        return _ratio(inter, self.predicted_S + self.truth - inter)

    @property
    def accuracy_S(self) -> np.ndarray:
        """Share of right pixels over foreground and background."""
        wrong = self.union_S - self.inter_S
        return _ratio(self.valid - wrong, np.full_like(wrong, self.valid))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole, and 1 where there is nothing to find and nothing was found."""
    return np.divide(part, whole, out=np.ones_like(part, dtype=np.float64), where=whole > 0)


def _count(predicted_SHW: torch.Tensor, mask: Mask, layout: Layout) -> _Counts:
    truth = check_mask(mask, layout).to(predicted_SHW.device)
    valid, foreground = truth != VOID, (truth != VOID) & (truth != 0)
    counted_SHW = predicted_SHW if bool(valid.all()) else predicted_SHW & valid
    return _Counts(
        count_pixels(predicted_SHW & foreground).double().cpu().numpy(),
        count_pixels(counted_SHW).double().cpu().numpy(),
        float(foreground.sum()),
        float(valid.sum()),
    )


class _Upsampled(NamedTuple):
    counts: _Counts
    kept: np.ndarray | None


def threshold_pixels(
    map_SHW: torch.Tensor,
    threshold_S: torch.Tensor,
    mask: Mask,
    layout: Layout,
    keep: int | None,
) -> _Upsampled:
    """Upsample, call pixels above the threshold foreground, count; off the grid is background."""
    height, width = layout.image_hw
    parts, kept = [], None
    for part in site_chunks(len(map_SHW), height * width):
        raised = map_SHW[part] - threshold_S[part, None, None]
        predicted = to_pixels(raised, layout, outside=-1.0) > 0
        parts.append(_count(predicted, mask, layout))
        if keep is not None and part.start <= keep < part.stop:
            kept = predicted[keep - part.start].cpu().numpy()
    counts = _Counts(
        np.concatenate([p.inter_S for p in parts]),
        np.concatenate([p.predicted_S for p in parts]),
        parts[0].truth,
        parts[0].valid,
    )
    return _Upsampled(counts, kept)


def mask_ceiling(mask: Mask, layout: Layout) -> float:
    """IoU in [0, 1] that perfect soft patch labels attain once upsampled: what the grid allows."""
    share = to_grid(mask, layout).share_HW[None]
    half = torch.full((1,), 0.5)
    return float(threshold_pixels(share, half, mask, layout, None).counts.iou_S[0])


def _unit_score(found: _Upsampled, ceiling: float) -> UnitScore:
    counts = found.counts
    wrong = counts.union_S - counts.inter_S
    background = {
        "inter_background": counts.valid - counts.union_S,
        "union_background": counts.valid - counts.union_S + wrong,
    }
    return UnitScore(
        counts.iou_S,
        counts.chance_S,
        ceiling,
        counts.inter_S,
        counts.union_S,
        background,
        found.kept,
    )


def _ceiling(given: float | None, mask: Mask, layout: Layout) -> float:
    return mask_ceiling(mask, layout) if given is None else given


def score_episode(
    support: Sequence[torch.Tensor],
    support_masks: Sequence[Mask],
    support_layouts: Sequence[Layout],
    query_SHWC: torch.Tensor,
    query_mask: Mask,
    query_layout: Layout,
    *,
    l2: float = 1e-3,
    keep: int | None = None,
    labels: Sequence[GridMask] | None = None,
    ceiling: float | None = None,
) -> UnitScore:
    """Few-shot foreground segmentation of one episode.

    Grids may differ between the images, each f_SHWC; masks are (height, width), 0/1 or bool, 255 =
    void. ``l2`` is the penalty of the classifier on standardised features of mean square length 1.
    IoU, with inter/union in pixels for pooled mIoU (Pascal-5i) and the background's for FB-IoU; of
    the site ``keep`` the predicted mask comes back in ``kept`` ((height, width) bool). Who scores
    several kinds of features gives what they share: the support's ``labels``, each of ``to_grid``,
    and the query's ``mask_ceiling``.
    """
    n_sites = check_sites(query_SHWC, *support)
    check_keep(keep, n_sites)
    if labels is None:
        labels = [to_grid(m, lay) for m, lay in zip(support_masks, support_layouts, strict=True)]
    share_N = torch.cat([g.share_HW.flatten() for g in labels]).to(query_SHWC.device)
    valid_N = torch.cat([g.valid_HW.flatten() for g in labels]).to(query_SHWC.device)
    per_site = 2 * (len(share_N) + query_SHWC[0, ..., 0].numel()) * query_SHWC.shape[3]
    logits, stuck = [], []
    for part in site_chunks(n_sites, per_site):
        x = torch.cat([f[part].flatten(1, 2) for f in support], dim=1)
        standardise = fit_standardiser(x)
        fit = fit_logistic(standardise(x), share_N, weight_N=valid_N, l2=l2)
        query = standardise(query_SHWC[part].flatten(1, 2))
        logit = torch.bmm(query, fit.weight_SC[..., None])[..., 0] + fit.bias_S[:, None]
        logits.append(logit.view(-1, *query_SHWC.shape[1:3]))
        stuck.append(~fit.converged_S)
    map_SHW = torch.cat(logits)
    at_half = torch.zeros(n_sites, device=map_SHW.device)  # logit 0 is p = 0.5
    found = threshold_pixels(map_SHW, at_half, query_mask, query_layout, keep)
    score = _unit_score(found, _ceiling(ceiling, query_mask, query_layout))
    score.extra["unconverged"] = torch.cat(stuck).double().cpu().numpy()
    return score


def otsu_threshold(x_SN: torch.Tensor) -> torch.Tensor:
    """Exact Otsu threshold (S,) of S samples, without a histogram: no bin width to choose.

    Between-class variance of every split of the sorted values; the threshold is the middle of the
    best gap (Otsu 1979). Constant samples give their own value, so nothing lies above it.
    """
    x = x_SN.double().sort(dim=1).values
    n = x.shape[1]
    below = torch.arange(1, n, device=x.device, dtype=x.dtype)
    centred = x - x.mean(1, keepdim=True)  # total sum 0: both class means follow from one cumsum
    sums = centred.cumsum(1)[:, :-1]
    between = sums.square() / (below * (n - below))
    best = between.argmax(1, keepdim=True)
    return ((x.gather(1, best) + x.gather(1, best + 1)) / 2)[:, 0].to(x_SN.dtype)


def score_sentence(
    text_SC: torch.Tensor,
    image_SHWC: torch.Tensor,
    mask: Mask,
    layout: Layout,
    *,
    keep: int | None = None,
    ceiling: float | None = None,
) -> UnitScore:
    """Segmentation by text, semantic (a class name) and referring (an expression) alike.

    The vector text_SC is in the space of the image's features; the (height, width) mask is 0/1 or
    bool, 255 = void. IoU, with inter/union in pixels for cIoU; of the site ``keep`` also the
    predicted mask; ``ceiling`` as for ``score_episode``.
    """
    n_sites = check_sites(image_SHWC)
    check_keep(keep, n_sites)
    if tuple(text_SC.shape) != (n_sites, image_SHWC.shape[3]):
        raise ValueError(
            f"text vectors must be ({n_sites}, {image_SHWC.shape[3]}) like the image's sites and "
            f"channels, got {tuple(text_SC.shape)}"
        )
    dots = []
    for part in site_chunks(n_sites, image_SHWC[0].numel()):
        flat = image_SHWC[part].flatten(1, 2).float()
        dots.append(torch.bmm(flat, text_SC[part].float()[..., None])[..., 0])
    map_SN = torch.cat(dots)
    threshold_S = otsu_threshold(map_SN)
    map_SHW = map_SN.view(image_SHWC.shape[:3])
    found = threshold_pixels(map_SHW, threshold_S, mask, layout, keep)
    return _unit_score(found, _ceiling(ceiling, mask, layout))
