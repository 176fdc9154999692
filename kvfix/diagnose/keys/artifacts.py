"""Input-agnostic image keys: keys that hardly change from one image to another, in every image.

Shapes: L layers, H KV heads, P grid cells in raster order.

The paper finds that image keys of later layers split into input-dependent and input-agnostic ones,
and that values at the latter carry artifacts (arXiv 2510.04819). It does not give its statistic;
`key_calibration` states the one used here. Sinks by massive activations are another thing, and are
counted apart: a sink is a property of a token's hidden state, an agnostic key one of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from kvfix.diagnose.keys.calibration import (
    ALPHA,
    Calibration,
    Halves,
    check_alpha,
    detect,
    halves_agree,
    is_split,
    jackknife,
    split_from,
    without_each,
)
from kvfix.diagnose.keys.statistics import GROUPS, KeyStatistics, mean_cosine, merged, stream_keys
from kvfix.eval.stats.bootstrap import Interval
from kvfix.mlm.load import Mlm


class Shares(NamedTuple):
    """Shares of agnostic keys, with 95 % intervals over the choice of images."""

    model: Interval  # of all keys; one number
    layer_L: Interval  # by layer
    head_LH: Interval  # by head, flattened: layer * H + head
    # Whether the layer's share lies above the stated false-positive rate, at a level of 1 - 0.05 /
    # L so that all layers together are wrong once in twenty.
    clear_L: np.ndarray


class Cosines(NamedTuple):
    """Mean cosines, in [-1, 1]; NaN where there are no two cells."""

    images_LHP: np.ndarray  # between the keys of two images at one cell
    cells_LH: np.ndarray  # between the mean keys of two cells
    agnostic_LH: np.ndarray  # the same among agnostic cells
    dependent_LH: np.ndarray  # the same among the others


class Sinks(NamedTuple):
    """Massive activations in the hidden state that a layer's keys are made of."""

    rate_LP: np.ndarray  # share of images in which the cell has one, in [0, 1]
    sink_LP: np.ndarray  # cells that have one in at least half of the images
    both: int  # keys at sinks that are agnostic
    agnostic_only: int  # agnostic keys that are not at a sink
    sink_only: int  # keys at sinks that are not agnostic


@dataclass(frozen=True, eq=False)
class KeyDiagnosis:
    """Which image keys of a model are input-agnostic."""

    dataset: str  # name of the images' dataset
    n: int  # images
    groups: int  # groups of images that the intervals rest on
    # Rows and columns of the grid; cell p is row p // columns, column p % columns.
    grid_hw: tuple[int, int]
    alpha: float  # stated false-positive rate
    r_LHP: np.ndarray  # ratio r in [0, 1]; 0: the key never changes
    agnostic_LHP: np.ndarray  # r < tau
    calibration: Calibration  # tau, and the measured false-positive rate on shuffled keys
    shares: Shares  # shares of agnostic keys with intervals
    halves: Halves  # agreement of what two halves of the images find
    cosines: Cosines  # of keys and mean keys
    sinks: Sinks  # massive activations
    split_L: np.ndarray  # layers whose keys fall into two groups
    split_from: int | None  # the layer from which on later layers split; None: they do not

    def share_map(self) -> np.ndarray:
        """(L, rows, columns) share of KV heads whose key at the cell is agnostic, in [0, 1]."""
        return self.agnostic_LHP.mean(1).reshape(-1, *self.grid_hw)


def diagnose_keys(
    mlm: Mlm,
    images: Iterable[Image.Image],
    *,
    seed: int,
    dataset: str = "scenes",
    clusters: Sequence[Hashable] | None = None,
    alpha: float = ALPHA,
    batch: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> KeyDiagnosis:
    """Find a model's input-agnostic image keys; features are not kept, only sums over images.

    There are at least 64 images of one grid, such as `to_square` makes them; a generator will do.
    `clusters` and `batch` are those of `stream_keys`; `alpha` is the false-positive rate that tau
    is calibrated to, in (0, 0.02]; `seed` is of the shuffles, `dataset` for the findings.
    """
    check_alpha(alpha)  # before the images are read
    stats = stream_keys(mlm, images, clusters=clusters, groups=GROUPS, batch=batch, tick=tick)
    return judge_keys(stats, seed=seed, dataset=dataset, alpha=alpha)


def judge_keys(
    stats: KeyStatistics, *, seed: int, dataset: str = "scenes", alpha: float = ALPHA
) -> KeyDiagnosis:
    """The diagnosis from streamed statistics; see `diagnose_keys`."""
    found = detect(stats.groups, alpha=alpha, seed=seed)
    agnostic = found.agnostic_LHP
    shares = _shares(stats, agnostic, alpha=alpha, seed=seed)
    split_L = shares.clear_L & np.array(
        [is_split(r, a) for r, a in zip(found.r_LHP, agnostic, strict=True)]
    )
    mean_LHPD = merged(stats.groups).mean_LHPD
    return KeyDiagnosis(
        dataset=dataset,
        n=stats.n,
        groups=len(stats.groups),
        grid_hw=stats.layout.grid_hw,
        alpha=alpha,
        r_LHP=found.r_LHP,
        agnostic_LHP=agnostic,
        calibration=found.calibration,
        shares=shares,
        halves=halves_agree(stats.groups, alpha=alpha, seed=seed),
        cosines=Cosines(
            images_LHP=stats.image_cosine_LHP,
            cells_LH=mean_cosine(mean_LHPD, np.ones_like(agnostic)),
            agnostic_LH=mean_cosine(mean_LHPD, agnostic),
            dependent_LH=mean_cosine(mean_LHPD, ~agnostic),
        ),
        sinks=_sinks(stats, agnostic),
        split_L=split_L,
        split_from=split_from(split_L),
    )


def _shares(stats: KeyStatistics, agnostic: np.ndarray, *, alpha: float, seed: int) -> Shares:
    without = np.stack(without_each(stats.groups, alpha=alpha, seed=seed))
    n, layers = stats.n, len(agnostic)
    model = jackknife(agnostic.mean(), without.mean((1, 2, 3)), n=n)
    by_layer, without_layer = agnostic.mean((1, 2)), without.mean((2, 3))
    strict = jackknife(by_layer, without_layer, n=n, level=1 - 0.05 / layers)
    return Shares(
        model=model,
        layer_L=jackknife(by_layer, without_layer, n=n),
        head_LH=jackknife(agnostic.mean(2).ravel(), without.mean(3), n=n),
        clear_L=strict.low_S > alpha,
    )


def _sinks(stats: KeyStatistics, agnostic: np.ndarray) -> Sinks:
    rate_LP = stats.massive_LP.cpu().numpy() / stats.n
    sink_LP = rate_LP >= 0.5
    at_sink = np.broadcast_to(sink_LP[:, None], agnostic.shape)
    return Sinks(
        rate_LP=rate_LP,
        sink_LP=sink_LP,
        both=int((agnostic & at_sink).sum()),
        agnostic_only=int((agnostic & ~at_sink).sum()),
        sink_only=int((~agnostic & at_sink).sum()),
    )
