"""Segmentation probes: few-shot foreground, co-segmentation, and segmentation by a text vector.

Shapes: S sites at once, H x W grid cells, height x width pixels, C channels, N patches, R seeds.

Protocols (arXiv 2510.04819; what it leaves open is filled in as stated here):
  foreground   an L2 logistic regression per episode on the support's patches, labels = share of the
               cell that the mask fills; Pascal-5i rule for void (255 counts nowhere).
  co-segmentation   Amir et al. (2112.05814): unit vectors, k-means with growing k, a cluster is
               foreground when at least 75 % of the images vote so. ViT saliency has no analogue
               inside an LM, so an image votes by place: the cluster is denser in its interior than
               on its border. Their GrabCut refinement is left out: it would look at pixels
               instead of features.
  by text      the dot product of a text vector with the patches, Otsu's threshold on the grid.

Chance of an IoU: expected intersection over expected union of as many foreground pixels as were
predicted, placed anywhere at random. Ceiling: the truth's own area shares, upsampled, above 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from kvfix.eval.grid import VOID, check_mask, to_grid, to_pixels
from kvfix.eval.metrics.boundary import count_pixels
from kvfix.eval.probes.kmeans import grow_kmeans
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
    return _Counts(
        count_pixels(predicted_SHW & foreground).double().cpu().numpy(),
        count_pixels(predicted_SHW & valid).double().cpu().numpy(),
        float(foreground.sum()),
        float(valid.sum()),
    )


class _Upsampled(NamedTuple):
    counts: _Counts
    kept: np.ndarray | None


def _threshold_pixels(
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
    return float(_threshold_pixels(share, half, mask, layout, None).counts.iou_S[0])


def _unit_score(found: _Upsampled, mask: Mask, layout: Layout) -> UnitScore:
    counts = found.counts
    wrong = counts.union_S - counts.inter_S
    background = {
        "inter_background": counts.valid - counts.union_S,
        "union_background": counts.valid - counts.union_S + wrong,
    }
    ceiling = mask_ceiling(mask, layout)
    return UnitScore(
        counts.iou_S,
        counts.chance_S,
        ceiling,
        counts.inter_S,
        counts.union_S,
        background,
        found.kept,
    )


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
) -> UnitScore:
    """Few-shot foreground segmentation of one episode.

    Grids may differ between the images, each f_SHWC; masks are (height, width), 0/1 or bool, 255 =
    void. ``l2`` is the penalty of the classifier on standardised features of mean square length 1.
    IoU, with inter/union in pixels for pooled mIoU (Pascal-5i) and the background's for FB-IoU; of
    the site ``keep`` the predicted mask comes back in ``kept`` ((height, width) bool).
    """
    n_sites = check_sites(query_SHWC, *support)
    check_keep(keep, n_sites)
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
    found = _threshold_pixels(map_SHW, at_half, query_mask, query_layout, keep)
    score = _unit_score(found, query_mask, query_layout)
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
) -> UnitScore:
    """Segmentation by text, semantic (a class name) and referring (an expression) alike.

    The vector text_SC is in the space of the image's features; the (height, width) mask is 0/1 or
    bool, 255 = void. IoU, with inter/union in pixels for cIoU; of the site ``keep`` also the
    predicted mask.
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
    return _unit_score(_threshold_pixels(map_SHW, threshold_S, mask, layout, keep), mask, layout)


def border_cells(grid_hw: tuple[int, int]) -> torch.Tensor:
    """(H, W) bool: the outer ring of cells, an eighth of the shorter side wide, at least one."""
    rows, cols = grid_hw
    ring = max(1, round(min(rows, cols) / 8))
    border = torch.ones(rows, cols, dtype=torch.bool)
    border[ring : rows - ring, ring : cols - ring] = False
    return border


def _foreground_clusters(
    labels_MN: torch.Tensor, image_N: torch.Tensor, border_N: torch.Tensor, share: float
) -> torch.Tensor:
    """(M, K) bool: clusters that at least ``share`` of the images place in their interior.

    An image votes for a cluster when the cluster fills more of its interior than of its border; an
    image without the cluster does not vote for it (as in Amir et al., where its saliency is NaN).
    """
    n_images, n_clusters = int(image_N.max()) + 1, int(labels_MN.max()) + 1
    bucket = (labels_MN * n_images + image_N) * 2 + border_N.long()
    count = torch.zeros(len(labels_MN), n_clusters * n_images * 2, device=labels_MN.device)
    count.scatter_add_(1, bucket, torch.ones_like(bucket, dtype=count.dtype))
    area = torch.bincount(image_N * 2 + border_N.long(), minlength=2 * n_images)
    density = count.view(-1, n_clusters, n_images, 2) / area.view(n_images, 2).clamp(min=1)
    votes = (density[..., 0] > density[..., 1]).sum(2)
    return votes >= math.ceil(n_images * share)


def score_group(
    images: Sequence[torch.Tensor],
    masks: Sequence[Mask],
    layouts: Sequence[Layout],
    *,
    seeds: int = 5,
    seed: int = 0,
    vote_share: float = 0.75,
    keep: int | None = None,
) -> UnitScore:
    """Co-segmentation of one group of images that share an object.

    Grids may differ between the images, each f_SHWC; masks are (height, width), 0/1 or bool, 255 =
    void. Scores are means over ``seeds`` k-means runs (k-means alone moves MSRC by points), of one
    generator; ``vote_share`` of the images must vote for a cluster, and a run in which none wins
    predicts nothing and scores 0. Jaccard index, mean over images, then seeds. ``extra``:
    ``precision`` (share of right pixels, foreground and background), ``jaccard_SR`` (S, R) and
    ``k`` (mean number of clusters); of the site ``keep`` the masks under the first seed come back
    in ``kept``.
    """
    n_sites = check_sites(*images)
    check_keep(keep, n_sites)
    cells = [f.shape[1] * f.shape[2] for f in images]
    device = images[0].device
    image_N = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(cells)).to(device)
    border_N = torch.cat([border_cells(lay.grid_hw).flatten() for lay in layouts]).to(device)
    foreground, k_S = [], []
    per_site = 2 * sum(cells) * max(images[0].shape[3], 14 * seeds)
    for part in site_chunks(n_sites, per_site):
        x = torch.cat([f[part].flatten(1, 2).float() for f in images], dim=1)
        generator = torch.Generator().manual_seed(seed)
        clusters = grow_kmeans(functional.normalize(x, dim=2), restarts=seeds, generator=generator)
        labels = clusters.labels_SRN.flatten(0, 1)
        wins = _foreground_clusters(labels, image_N, border_N, vote_share)
        foreground.append(wins.gather(1, labels))
        k_S.append(clusters.k_SR.double().mean(1))
    map_MN = torch.cat(foreground).float()  # M = S * R, seeds fastest
    half = torch.full((len(map_MN),), 0.5, device=device)
    found = [
        _threshold_pixels(
            m.view(-1, *lay.grid_hw), half, mask, lay, None if keep is None else keep * seeds
        )
        for m, mask, lay in zip(map_MN.split(cells, dim=1), masks, layouts, strict=True)
    ]
    jaccard_SR = np.mean([f.counts.iou_S for f in found], axis=0).reshape(n_sites, seeds)

    def mean_over_runs(per_image: list[np.ndarray]) -> np.ndarray:
        return np.mean(per_image, axis=0).reshape(n_sites, seeds).mean(1)

    return UnitScore(
        jaccard_SR.mean(1),
        mean_over_runs([f.counts.chance_S for f in found]),
        float(np.mean([mask_ceiling(m, lay) for m, lay in zip(masks, layouts, strict=True)])),
        extra={
            "precision": mean_over_runs([f.counts.accuracy_S for f in found]),
            "jaccard_SR": jaccard_SR,
            "k": torch.cat(k_S).cpu().numpy(),
        },
        kept=tuple(f.kept for f in found if f.kept is not None) if keep is not None else None,
    )
