"""Are values at input-agnostic keys worse? Few-shot foreground, scored cell by cell.

Shapes: N episodes, L layers, H KV heads, P grid cells, S draws of the control.

One classifier a head learns foreground from the support's values at ALL cells; on the query, each
head calls each cell right or wrong. Cells differ in how easy they are: a corner is background in
nearly every image, and agnostic keys may well lie in corners. So values at chosen keys are compared
with what the layer's other heads hold at the SAME cells of the same image; where all heads of a
cell are chosen or none is, there is nothing to compare. Control: the same for equally many keys of
the layer, drawn at random. Left in: a head that is worse at every cell, and agnostic at some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from kvfix.data.left_out import LeftOut, attempted
from kvfix.data.units import Episode
from kvfix.diagnose.keys.statistics import to_square
from kvfix.eval.grid import to_grid
from kvfix.eval.probes.logistic import fit_logistic, fit_standardiser
from kvfix.eval.probes.score import site_chunks
from kvfix.eval.source import MlmSource, View
from kvfix.eval.stats.bootstrap import Interval, clustered_bootstrap, paired_bootstrap
from kvfix.mlm.load import Mlm

DRAWS = 16


@dataclass(frozen=True, eq=False)
class CellScores:
    """Patch accuracy of values at chosen keys and at others."""

    chosen: str  # what the chosen keys are, for the findings ("input-agnostic keys")
    ids: list[str]  # one an episode
    clusters: list[str]  # one an episode
    cells_L: np.ndarray  # cells of each layer at which some heads are chosen and some are not
    # Plain shares of cells called right, in [0, 1], over all episodes and layers: values at
    # `chosen` keys, at all `other` keys of their layers, and at the chosen cells by a classifier
    # that sees the cell's `place` only. These differ by how easy cells are.
    accuracy: dict[str, float]
    # Accuracy at chosen keys less that of other heads at the same cells; NaN in layers without such
    # cells.
    gap_NL: np.ndarray
    random_gap_NL: np.ndarray  # the same for equally many random keys, mean over draws
    # Why other episodes have no score, by id.
    left_out: dict[str, str] = field(default_factory=dict)

    def gap(self, *, seed: int = 0) -> Interval | None:
        """Chosen keys against other heads at the same cells; None where no cell has both.

        Layers weigh by their cells, episodes are resampled by cluster.
        """
        gap_N = self._over_layers(self.gap_NL)
        if np.isnan(gap_N).all():
            return None
        return clustered_bootstrap(gap_N, self.clusters, seed=seed)

    def beyond_random(self, *, seed: int = 0) -> Interval | None:
        """The gap less that of equally many random keys, paired over episodes."""
        random_N, gap_N = (self._over_layers(g) for g in (self.random_gap_NL, self.gap_NL))
        if np.isnan(random_N + gap_N).all():
            return None
        return paired_bootstrap(random_N, gap_N, self.clusters, seed=seed)

    def _over_layers(self, gap_NL: np.ndarray) -> np.ndarray:
        weight_NL = np.where(np.isnan(gap_NL), 0, self.cells_L)
        total_N = weight_NL.sum(1)
        sums_N = (np.nan_to_num(gap_NL) * weight_NL).sum(1)
        return np.divide(sums_N, total_N, out=np.full(len(total_N), np.nan), where=total_N > 0)


def score_cells(
    mlm: Mlm,
    episodes: Iterable[Episode],
    chosen_LHP: np.ndarray,
    *,
    side: int,
    seed: int,
    chosen: str = "input-agnostic keys",
    tick: Callable[[], None] = lambda: None,
) -> CellScores:
    """Score the values at chosen keys, and those of other heads at the same cells.

    Episodes are cut to squares of `side` pixels, which must give the grid that the keys were found
    on; `chosen` names the keys. Random keys are the same for all episodes, the classifiers those of
    few-shot foreground segmentation.
    """
    if not chosen_LHP.any():
        raise ValueError("expected at least one chosen key, found none; there is nothing to score")
    in_layers = np.broadcast_to(chosen_LHP.any((1, 2), keepdims=True), chosen_LHP.shape)
    random_SLHP = _random_keys(chosen_LHP, np.random.default_rng(seed))
    source = MlmSource(mlm, kinds=("value",), heads=True)
    ids, clusters = [], []
    gaps, random_gaps, plain = [], [], []
    left_out: dict[str, str] = {}
    every = list(episodes)

    def right_of(number: int) -> _Right:
        return _right(source, squared(every[number], side), chosen_LHP.shape)

    found = attempted(len(every), right_of, lambda i: tick())
    for episode, right in zip(every, found, strict=True):
        if isinstance(right, LeftOut):
            left_out[episode.id] = right.why
            continue
        values_LHP, place_P, weight_P = right
        gaps.append(_gap(values_LHP, chosen_LHP[None], weight_P))
        random_gaps.append(_gap(values_LHP, random_SLHP, weight_P))
        place_LHP = np.broadcast_to(place_P, chosen_LHP.shape)
        plain.append(
            [
                _mean(values_LHP, chosen_LHP * weight_P),
                _mean(values_LHP, (in_layers & ~chosen_LHP) * weight_P),
                _mean(place_LHP, chosen_LHP * weight_P),
            ]
        )
        ids.append(episode.id)
        clusters.append(episode.cluster)
    if not ids:
        why = f": {next(iter(left_out.values()))}" if left_out else ""
        raise ValueError(f"expected at least one episode, found none{why}")
    some_LP = chosen_LHP.any(1) & ~chosen_LHP.all(1)
    return CellScores(
        chosen=chosen,
        ids=ids,
        clusters=clusters,
        cells_L=some_LP.sum(1),
        accuracy=dict(zip(("chosen", "other", "place"), np.mean(plain, 0).tolist(), strict=True)),
        gap_NL=np.stack(gaps),
        random_gap_NL=np.stack(random_gaps),
        left_out=left_out,
    )


def squared(episode: Episode, side: int) -> Episode:
    """The episode on images of side x side pixels, masks cut as `to_square` cuts."""

    def mask(mask_HW: np.ndarray) -> np.ndarray:
        height, width = mask_HW.shape
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        cut = Image.fromarray(mask_HW[top : top + edge, left : left + edge])
        return np.array(cut.resize((side, side), Image.Resampling.NEAREST))

    return replace(
        episode,
        support=tuple(to_square(image, side) for image in episode.support),
        support_masks=tuple(mask(m) for m in episode.support_masks),
        query=to_square(episode.query, side),
        query_mask=mask(episode.query_mask),
    )


class _Right(NamedTuple):
    """Which query cells the classifiers call right, and how much of each cell counts."""

    values_LHP: np.ndarray
    place_P: np.ndarray
    weight_P: np.ndarray


def _right(source: MlmSource, episode: Episode, shape: tuple[int, ...]) -> _Right:
    *support, query = source.views([*episode.support, episode.query])
    rows, cols = query.layout.grid_hw
    if shape[2] != rows * cols:
        raise ValueError(
            f"{episode.id}: expected images on the keys' grid of {shape[2]} cells, found {rows} x "
            f"{cols}; score at the side that the keys were found at"
        )
    labels = [to_grid(m, v.layout) for m, v in zip(episode.support_masks, support, strict=True)]
    share_N = torch.cat([label.share_HW.flatten() for label in labels])
    valid_N = torch.cat([label.valid_HW.flatten() for label in labels])
    truth = to_grid(episode.query_mask, query.layout)
    wanted_P = truth.share_HW.flatten() > 0.5
    values_SP, place_SP = (
        (_called(kind, support, query, share_N, valid_N) == wanted_P).numpy()
        for kind in ("value/head", "position")
    )
    return _Right(
        values_SP.reshape(shape).astype(float),
        place_SP[0].astype(float),
        truth.valid_HW.flatten().numpy(),
    )


def _called(
    kind: str,
    support: list[View],
    query: View,
    share_N: torch.Tensor,
    valid_N: torch.Tensor,
) -> torch.Tensor:
    """(S, P) bool: query cells called foreground by a classifier a site."""
    q_SHWC = query.features[kind]
    y_N, v_N = share_N.to(q_SHWC.device), valid_N.to(q_SHWC.device)
    called = []
    for part in site_chunks(len(q_SHWC), 2 * len(y_N) * q_SHWC.shape[3]):
        x_SNC = torch.cat([view.features[kind][part].flatten(1, 2) for view in support], dim=1)
        standardise = fit_standardiser(x_SNC)
        fit = fit_logistic(standardise(x_SNC), y_N, weight_N=v_N)
        q_SPC = standardise(q_SHWC[part].flatten(1, 2))
        logit_SP = torch.bmm(q_SPC, fit.weight_SC[..., None])[..., 0] + fit.bias_S[:, None]
        called.append(logit_SP > 0)
    return torch.cat(called).cpu()


def _random_keys(chosen_LHP: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(S, L, H, P) bool: in each draw as many keys of a layer as were chosen there."""
    flat = chosen_LHP.reshape(len(chosen_LHP), -1)
    drawn = np.stack([rng.permuted(flat, axis=1) for _ in range(DRAWS)])
    return drawn.reshape(DRAWS, *chosen_LHP.shape)


def _gap(right_LHP: np.ndarray, masks_SLHP: np.ndarray, weight_P: np.ndarray) -> np.ndarray:
    """(L,) accuracy of a mask's heads less that of the others at the same cell, over such cells."""
    inside_SLP, outside_SLP = masks_SLHP.sum(2), (~masks_SLHP).sum(2)
    both_SLP = (inside_SLP > 0) & (outside_SLP > 0)
    of_mask_SLP = (right_LHP * masks_SLHP).sum(2) / np.maximum(inside_SLP, 1)
    of_others_SLP = (right_LHP * ~masks_SLHP).sum(2) / np.maximum(outside_SLP, 1)
    weight_SLP = both_SLP * weight_P
    sums_SL = ((of_mask_SLP - of_others_SLP) * weight_SLP).sum(2)
    total_SL = weight_SLP.sum(2)
    gap_SL = np.divide(sums_SL, total_SL, out=np.full(sums_SL.shape, np.nan), where=total_SL > 0)
    drawn_L = (total_SL > 0).sum(0)
    sums_L = np.nansum(gap_SL, axis=0)
    return np.divide(sums_L, drawn_L, out=np.full(len(sums_L), np.nan), where=drawn_L > 0)


def _mean(x: np.ndarray, weight: np.ndarray) -> float:
    """Weighted mean; NaN where nothing has weight."""
    return float((x * weight).sum() / weight.sum()) if weight.any() else float("nan")
