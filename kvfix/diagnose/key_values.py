"""Are values at input-agnostic keys worse? Few-shot foreground, scored cell by cell.

Shapes: N episodes, L layers, H KV heads, P grid cells, S draws of the control.

One classifier a head learns foreground from the support's values at ALL cells; its accuracy on the
query is then taken apart at some cells and at the others of the same layer. Cells differ in how
easy they are (a corner is nearly always background), so the accuracy of a classifier that sees the
cell's place only is taken off, cell by cell: what is left is what the values add there. Control:
equally many cells of the layer, drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from kvfix.data.units import Episode
from kvfix.diagnose.key_statistics import to_square
from kvfix.eval.grid import to_grid
from kvfix.eval.logistic import fit_logistic, fit_standardiser
from kvfix.eval.source import MlmSource, View
from kvfix.eval.stats import Interval, paired_bootstrap
from kvfix.eval.unit import site_chunks
from kvfix.models import Mlm

DRAWS = 16
GROUPS = ("chosen", "other", "random")


class Difference(NamedTuple):
    """One mean over episodes and layers, and a paired difference to it, with intervals.

    Attributes:
        before: Mean of the cells compared with, in [-1, 1].
        after: Mean of the chosen cells.
        change: after - before, paired over episodes.
    """

    before: float
    after: float
    change: Interval


@dataclass(frozen=True, eq=False)
class CellScores:
    """Patch accuracy of values at chosen cells, at the other cells and at random ones.

    Attributes:
        chosen: What the chosen cells are, for the findings ("input-agnostic keys").
        ids: One an episode.
        clusters: One an episode.
        keys_L: Chosen keys of each layer; layers without any, or with nothing else, score NaN.
        accuracy_NL: By group of `GROUPS`: share of cells called right, in [0, 1].
        added_NL: The same less what a classifier that sees the place only gets at these cells.
    """

    chosen: str
    ids: list[str]
    clusters: list[str]
    keys_L: np.ndarray
    accuracy_NL: dict[str, np.ndarray]
    added_NL: dict[str, np.ndarray]

    def difference(self, against: str, *, added: bool = True, seed: int = 0) -> Difference:
        """Chosen cells against "other" or "random" ones, layers weighted by their chosen keys."""
        table = self.added_NL if added else self.accuracy_NL
        before, after = (self._over_layers(table[group]) for group in (against, "chosen"))
        both = ~np.isnan(before + after)
        if not both.any():
            raise ValueError("expected a layer with chosen cells and others, found none")
        change = paired_bootstrap(before, after, self.clusters, seed=seed)
        return Difference(float(before[both].mean()), float(after[both].mean()), change)

    def _over_layers(self, score_NL: np.ndarray) -> np.ndarray:
        weight_NL = np.where(np.isnan(score_NL), 0, self.keys_L)
        total_N = weight_NL.sum(1)
        sums_N = (np.nan_to_num(score_NL) * weight_NL).sum(1)
        return np.divide(sums_N, total_N, out=np.full(len(total_N), np.nan), where=total_N > 0)


def score_cells(
    mlm: Mlm,
    episodes: Iterable[Episode],
    chosen_LHP: np.ndarray,
    *,
    side: int,
    seed: int,
    chosen: str = "input-agnostic keys",
    l2: float = 1e-3,
    tick: Callable[[], None] = lambda: None,
) -> CellScores:
    """Score the values of each head at chosen cells against its layer's others.

    Args:
        mlm: The model.
        episodes: Support and query; cut to squares of `side` pixels.
        chosen_LHP: Bool, such as `KeyDiagnosis.agnostic_LHP`; at least one key.
        side: Pixels; must give the grid that the keys were found on.
        seed: Of the random cells, which are the same for all episodes.
        chosen: Name of the chosen cells.
        l2: Penalty of the classifiers, as in few-shot foreground segmentation.
        tick: Called after each episode.

    Raises:
        ValueError: No episode, no chosen key, or another grid than the keys'.
    """
    if not chosen_LHP.any():
        raise ValueError("expected at least one chosen key, found none; there is nothing to score")
    masks = {
        "chosen": chosen_LHP[None],
        "other": ~chosen_LHP[None],
        "random": _random_cells(chosen_LHP, np.random.default_rng(seed)),
    }
    source = MlmSource(mlm, kinds=("value",), heads=True)
    ids, clusters = [], []
    accuracy: dict[str, list[np.ndarray]] = {group: [] for group in GROUPS}
    added: dict[str, list[np.ndarray]] = {group: [] for group in GROUPS}
    for episode in episodes:
        right = _right(source, squared(episode, side), chosen_LHP.shape, l2=l2)
        for group in GROUPS:
            accuracy[group].append(_mean_over(right.values_LHP, masks[group], right.weight_P))
            beyond = right.values_LHP - right.place_P
            added[group].append(_mean_over(beyond, masks[group], right.weight_P))
        ids.append(episode.id)
        clusters.append(episode.cluster)
        tick()
    if not ids:
        raise ValueError("expected at least one episode, found none")
    split = chosen_LHP.any((1, 2)) & ~chosen_LHP.all((1, 2))
    return CellScores(
        chosen=chosen,
        ids=ids,
        clusters=clusters,
        keys_L=chosen_LHP.sum((1, 2)) * split,
        accuracy_NL={group: np.stack(rows) for group, rows in accuracy.items()},
        added_NL={group: np.stack(rows) for group, rows in added.items()},
    )


def squared(episode: Episode, side: int) -> Episode:
    """The episode on images of side x side pixels, masks cut as `to_square` cuts."""

    def mask(mask_HW: np.ndarray) -> np.ndarray:
        height, width = mask_HW.shape
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        cut = Image.fromarray(mask_HW[top : top + edge, left : left + edge])
        return np.asarray(cut.resize((side, side), Image.Resampling.NEAREST))

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


def _right(source: MlmSource, episode: Episode, shape: tuple[int, ...], *, l2: float) -> _Right:
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
        (_called(kind, support, query, share_N, valid_N, l2=l2) == wanted_P).numpy()
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
    *,
    l2: float,
) -> torch.Tensor:
    """(S, P) bool: query cells called foreground by a classifier a site."""
    q_SHWC = query.features[kind]
    y_N, v_N = share_N.to(q_SHWC.device), valid_N.to(q_SHWC.device)
    called = []
    for part in site_chunks(len(q_SHWC), 2 * len(y_N) * q_SHWC.shape[3]):
        x_SNC = torch.cat([view.features[kind][part].flatten(1, 2) for view in support], dim=1)
        standardise = fit_standardiser(x_SNC)
        fit = fit_logistic(standardise(x_SNC), y_N, weight_N=v_N, l2=l2)
        q_SPC = standardise(q_SHWC[part].flatten(1, 2))
        logit_SP = torch.bmm(q_SPC, fit.weight_SC[..., None])[..., 0] + fit.bias_S[:, None]
        called.append(logit_SP > 0)
    return torch.cat(called).cpu()


def _random_cells(chosen_LHP: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(S, L, H, P) bool: in each draw as many keys of a layer as were chosen there."""
    flat = chosen_LHP.reshape(len(chosen_LHP), -1)
    drawn = np.stack([rng.permuted(flat, axis=1) for _ in range(DRAWS)])
    return drawn.reshape(DRAWS, *chosen_LHP.shape)


def _mean_over(x_LHP: np.ndarray, masks_SLHP: np.ndarray, weight_P: np.ndarray) -> np.ndarray:
    """(L,) mean over the masks' cells, then over masks; NaN where a layer has none."""
    count_SL = (masks_SLHP * weight_P).sum((2, 3))
    sums_SL = np.einsum("slhp,lhp->sl", masks_SLHP, x_LHP * weight_P)
    mean_SL = np.divide(sums_SL, count_SL, out=np.full(count_SL.shape, np.nan), where=count_SL > 0)
    return mean_SL.mean(0)
