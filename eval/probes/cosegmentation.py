"""Co-segmentation: what several images share, by clustering their patches together.

Protocol: Amir et al. (2112.05814): unit vectors, k-means with growing k, a cluster is foreground
when at least 75 % of the images vote so. ViT saliency has no analogue inside an LM, so an image
votes by place: the cluster is denser in its interior than on its border. Their GrabCut refinement
is left out: it would look at pixels instead of features.

Shapes: S sites at once, H x W grid cells, height x width pixels, C channels, N patches, R seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from kvfix.data.groups import grouped
from kvfix.eval.probes.kmeans import grow_kmeans
from kvfix.eval.probes.score import UnitScore, check_keep, check_sites, site_chunks
from kvfix.eval.probes.segmentation import Mask, mask_ceiling, threshold_pixels
from kvfix.mlm.layout import Layout


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
    features: Mapping[str, Sequence[torch.Tensor]],
    masks: Sequence[Mask],
    layouts: Sequence[Layout],
    *,
    seeds: int = 5,
    seed: int = 0,
    vote_share: float = 0.75,
    keep: tuple[str, int] | None = None,
) -> dict[str, UnitScore]:
    """Co-segmentation of one group of images that share an object, by each kind of features.

    A kind has an f_SHWC for each image, whose grids may differ; masks are (height, width), 0/1 or
    bool, 255 = void. Scores are means over ``seeds`` k-means runs (k-means alone moves MSRC by
    points), of one generator; ``vote_share`` of the images must vote for a cluster, and a run in
    which none wins predicts nothing and scores 0. Jaccard index, mean over images, then seeds.
    ``extra``: ``precision`` (share of right pixels, foreground and background), ``jaccard_SR``
    (S, R) and ``k`` (mean number of clusters); of the kind and site ``keep`` the masks under the
    first seed come back in ``kept``.
    """
    sites = {kind: check_sites(*images) for kind, images in features.items()}
    if keep is not None:
        check_keep(keep[1], sites[keep[0]])
    clustered = _clustered(features, layouts, seeds, seed, vote_share)
    ceiling = float(np.mean([mask_ceiling(m, lay) for m, lay in zip(masks, layouts, strict=True)]))
    return {
        kind: _group_score(
            *(*found, masks, layouts, seeds, ceiling),
            keep[1] if keep is not None and keep[0] == kind else None,
        )
        for kind, found in clustered.items()
    }


class _Clustered(NamedTuple):
    """The patches of a group that are foreground at M = S * R runs, seeds fastest, and mean k."""

    map_MN: torch.Tensor
    k_S: torch.Tensor


def _clustered(
    features: Mapping[str, Sequence[torch.Tensor]],
    layouts: Sequence[Layout],
    seeds: int,
    seed: int,
    vote_share: float,
) -> dict[str, _Clustered]:
    """Cluster every kind; sites of as many channels go together, also those of different kinds."""
    first = next(iter(features.values()))
    cells, device = [f.shape[1] * f.shape[2] for f in first], first[0].device
    image_N = torch.repeat_interleave(torch.arange(len(cells)), torch.tensor(cells)).to(device)
    border_N = torch.cat([border_cells(lay.grid_hw).flatten() for lay in layouts]).to(device)
    maps: dict[str, list[torch.Tensor]] = {kind: [] for kind in features}
    k: dict[str, list[torch.Tensor]] = {kind: [] for kind in features}
    of_site = [(kind, s) for kind, images in features.items() for s in range(len(images[0]))]
    for channels, alike in grouped(of_site, lambda at: features[at[0]][0].shape[3]).items():
        for part in site_chunks(len(alike), 2 * sum(cells) * max(channels, 14 * seeds)):
            x = torch.stack(
                [
                    torch.cat([f[s].flatten(0, 1) for f in features[kind]]).float()
                    for kind, s in alike[part]
                ]
            )
            generator = torch.Generator().manual_seed(seed)
            clusters = grow_kmeans(
                functional.normalize(x, dim=2), restarts=seeds, generator=generator
            )
            labels = clusters.labels_SRN.flatten(0, 1)
            wins = _foreground_clusters(labels, image_N, border_N, vote_share)
            found = wins.gather(1, labels).float().split(seeds), clusters.k_SR.double().mean(1)
            for (kind, _), map_RN, k_mean in zip(alike[part], *found, strict=True):
                maps[kind].append(map_RN)
                k[kind].append(k_mean)
    return {kind: _Clustered(torch.cat(maps[kind]), torch.stack(k[kind])) for kind in features}


def _group_score(
    map_MN: torch.Tensor,
    k_S: torch.Tensor,
    masks: Sequence[Mask],
    layouts: Sequence[Layout],
    seeds: int,
    ceiling: float,
    keep: int | None,
) -> UnitScore:
    half = torch.full((len(map_MN),), 0.5, device=map_MN.device)
    cells = [lay.grid_hw[0] * lay.grid_hw[1] for lay in layouts]
    found = [
        threshold_pixels(
            m.view(-1, *lay.grid_hw), half, mask, lay, None if keep is None else keep * seeds
        )
        for m, mask, lay in zip(map_MN.split(cells, dim=1), masks, layouts, strict=True)
    ]
    jaccard_SR = np.mean([f.counts.iou_S for f in found], axis=0).reshape(-1, seeds)

    def mean_over_runs(per_image: list[np.ndarray]) -> np.ndarray:
        return np.mean(per_image, axis=0).reshape(-1, seeds).mean(1)

    return UnitScore(
        jaccard_SR.mean(1),
        mean_over_runs([f.counts.chance_S for f in found]),
        ceiling,
        extra={
            "precision": mean_over_runs([f.counts.accuracy_S for f in found]),
            "jaccard_SR": jaccard_SR,
            "k": k_S.cpu().numpy(),
        },
        kept=tuple(f.kept for f in found if f.kept is not None) if keep is not None else None,
    )
