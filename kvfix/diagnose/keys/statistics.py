"""Moments of image keys over many images of one grid, streamed: memory knows no number of images.

Shapes: L layers, H KV heads, P grid cells in raster order, D channels of a head, G groups of
images, C channels of the residual stream.

Keys are read before RoPE, and the bias of `k_proj` is taken off here (and only here): a constant
that every key shares would make every key look constant. Images fall into G groups, each with
moments of its own, so that intervals, halves and shuffles need no second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice, repeat

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kvfix.eval.source import NEUTRAL, TOKEN_BUDGET
from kvfix.mlm.capture import extract
from kvfix.mlm.layout import Layout
from kvfix.mlm.load import Mlm, Prompt
from kvfix.ranks import dealt, everyone, ranks, summed

FEWEST_IMAGES = 64
GROUPS = 8
MASSIVE = 100.0  # Sun et al. 2024 (arXiv 2402.17762): a massive activation is above 100
TIMES_MEDIAN = 1000.0  # and above 1000 times the median magnitude of its hidden state


class BadKeys(ValueError):
    """Keys of one image that are not finite."""

    def __init__(self, number: int):
        self.number = number  # of the image, from 0
        super().__init__(
            f"image {number}: expected finite keys, found NaN or infinity; try another dtype"
        )


@dataclass(eq=False)
class Moments:
    """Count, mean and summed squared distance from the mean, by Welford's update, in float64."""

    n: int  # images
    mean_LHPD: Tensor  # mean key of each cell
    m2_LHP: Tensor  # sum over images of |k - mean|^2; over n - 1 it is the trace of the covariance

    @classmethod
    def empty(cls, like_LHPD: Tensor) -> Moments:
        """Moments of no image."""
        mean = torch.zeros_like(like_LHPD, dtype=torch.float64)
        return cls(0, mean, mean.new_zeros(mean.shape[:3]))

    def add(self, k_LHPD: Tensor) -> None:
        """Count one image in."""
        self.n += 1
        off_LHPD = k_LHPD - self.mean_LHPD
        self.mean_LHPD += off_LHPD / self.n
        self.m2_LHP += (off_LHPD * (k_LHPD - self.mean_LHPD)).sum(-1)

    @property
    def mean_square_LHP(self) -> np.ndarray:
        """|mean key|^2 of each cell."""
        return self.mean_LHPD.square().sum(-1).cpu().numpy()

    @property
    def variance_LHP(self) -> np.ndarray:
        """Trace of the unbiased covariance over images, of each cell."""
        return (self.m2_LHP / (self.n - 1)).cpu().numpy()


def merged(parts: Sequence[Moments]) -> Moments:
    """Moments of all parts together (Chan, Golub and LeVeque 1983); the parts stay as they are."""
    first, *others = parts
    total = Moments(first.n, first.mean_LHPD.clone(), first.m2_LHP.clone())
    for part in others:
        n = total.n + part.n
        off_LHPD = part.mean_LHPD - total.mean_LHPD
        total.m2_LHP += part.m2_LHP + off_LHPD.square().sum(-1) * (total.n * part.n / n)
        total.mean_LHPD += off_LHPD * (part.n / n)
        total.n = n
    return total


@dataclass(eq=False)
class KeyStatistics:
    """What is left of the images' keys."""

    groups: list[Moments]  # moments of each group of images; images of one cluster are in one group
    unit_sum_LHPD: Tensor  # sum over images of the keys' directions, k / |k|
    # Images in which the hidden state that the layer reads at the cell has a massive activation.
    massive_LP: Tensor
    layout: Layout  # of the first image; all have its grid

    @property
    def n(self) -> int:
        """Images."""
        return sum(group.n for group in self.groups)

    @property
    def image_cosine_LHP(self) -> np.ndarray:
        """Mean cosine of a cell's keys over all pairs of images, in [-1, 1]."""
        together = self.unit_sum_LHPD.square().sum(-1).cpu().numpy()
        return (together - self.n) / (self.n * (self.n - 1))


def mean_cosine(mean_LHPD: Tensor, cells_LHP: np.ndarray) -> np.ndarray:
    """(L, H) mean cosine over all pairs of the mean keys at some cells; NaN for fewer than two."""
    unit_LHPD = torch.nn.functional.normalize(mean_LHPD, dim=-1)
    chosen_LHP = torch.from_numpy(cells_LHP).to(mean_LHPD)
    n_LH = chosen_LHP.sum(-1).cpu().numpy()
    together_LH = (unit_LHPD * chosen_LHP[..., None]).sum(2).square().sum(-1).cpu().numpy()
    pairs_LH = n_LH * (n_LH - 1)
    out = np.full(n_LH.shape, np.nan)
    return np.divide(together_LH - n_LH, pairs_LH, out=out, where=pairs_LH > 0)


def to_square(image: Image.Image, side: int) -> Image.Image:
    """The largest centred square of an image, at side x side pixels, RGB.

    Cut, not padded: padding is the same in every image, so its keys would be agnostic to the image
    for a reason that lies in the picture and not in the model.
    """
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    box = (left, top, left + edge, top + edge)
    return image.convert("RGB").crop(box).resize((side, side), Image.Resampling.BICUBIC)


def stream_keys(
    mlm: Mlm,
    images: Iterable[Image.Image],
    *,
    clusters: Sequence[Hashable] | None = None,
    groups: int = GROUPS,
    batch: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> KeyStatistics:
    """Run images through the model, each alone in its prompt, and keep sums only.

    There are at least 64 images, all of one grid; a generator is read a batch at a time. `clusters`
    are one label an image (the clip of a frame), dealt out to the groups in turn; None: images are
    independent. `batch` is by their number of tokens if None.
    """
    if isinstance(images, Sized):
        _check_count(len(images))
    bias_L1H1D = _biases(mlm)
    stats: KeyStatistics | None = None
    group_of: dict[Hashable, int] = {}
    at, bad = 0, None
    try:
        for number, found in enumerate(_read(mlm, images, batch)):
            label = number if clusters is None else _label(clusters, number)
            group = group_of.setdefault(label, len(group_of) % groups)
            at = number + 1
            tick()
            if found is None:  # another rank reads it
                continue
            k_LHPD, massive_LP, layout = found
            k = k_LHPD.double() if bias_L1H1D is None else k_LHPD.double() - bias_L1H1D
            if stats is None:
                stats = _nothing_yet(k, massive_LP, layout, groups)
            _check_image(number, k, layout, stats.layout)
            stats.groups[group].add(k)
            length_LHP1 = k.norm(dim=-1, keepdim=True)
            stats.unit_sum_LHPD += torch.where(length_LHP1 > 0, k / length_LHP1, 0.0)
            stats.massive_LP += massive_LP
    except BadKeys as error:
        bad = error.number
    if of_ranks := [n for n in everyone(bad) if n is not None]:
        raise BadKeys(min(of_ranks))
    _check_count(at)
    stats = _of_all_ranks(stats, mlm, groups)
    if clusters is not None and len(clusters) != at:
        raise ValueError(f"expected one cluster an image, found {len(clusters)} for {at} images")
    if min(group.n for group in stats.groups) < 2:
        raise ValueError(
            f"expected at least two images in each of {groups} groups, found "
            f"{[group.n for group in stats.groups]}; give images of more clusters"
        )
    return stats


def _nothing_yet(k_LHPD: Tensor, massive_LP: Tensor, layout: Layout, groups: int) -> KeyStatistics:
    """Statistics of no image, for keys of this shape."""
    empty = [Moments.empty(k_LHPD) for _ in range(groups)]
    zero_LP = torch.zeros_like(massive_LP, dtype=torch.long)
    return KeyStatistics(empty, torch.zeros_like(k_LHPD), zero_LP, layout)


def _of_all_ranks(mine: KeyStatistics | None, mlm: Mlm, groups: int) -> KeyStatistics:
    """The statistics of all ranks' images together, on every rank; a rank may have read none."""
    if ranks() == 1:
        assert mine is not None
        return mine
    read = None if mine is None else (mine.unit_sum_LHPD.shape, mine.massive_LP.shape, mine.layout)
    shape, massive, layout = next(filter(None, everyone(read)))
    if mine is None:
        k_LHPD = torch.zeros(shape, dtype=torch.float64, device=mlm.device)
        mine = _nothing_yet(k_LHPD, k_LHPD.new_zeros(massive), layout, groups)
    _check_grid(0, mine.layout, layout)
    counts = torch.tensor([group.n for group in mine.groups])
    for group, n in zip(mine.groups, summed(counts).tolist(), strict=True):
        mean_LHPD = summed(group.mean_LHPD * group.n) / max(n, 1)
        off_LHPD = group.mean_LHPD - mean_LHPD
        group.m2_LHP = summed(group.m2_LHP + off_LHPD.square().sum(-1) * group.n)
        group.mean_LHPD, group.n = mean_LHPD, n
    mine.unit_sum_LHPD = summed(mine.unit_sum_LHPD)
    mine.massive_LP = summed(mine.massive_LP)
    return mine


def _read(
    mlm: Mlm, images: Iterable[Image.Image], batch: int | None
) -> Iterator[tuple[Tensor, Tensor, Layout] | None]:
    """Key, massive activations and layout of each image; None for one that another rank reads."""
    left, turns = iter(images), dealt(None)
    mine, number = next(turns), 0
    while chunk := list(islice(left, batch or 1)):
        prompts = [Prompt((image,), NEUTRAL) for image in chunk]
        if batch is None:  # the first image tells how many fit
            [[span]] = mlm.encode(prompts).images
            batch = max(1, TOKEN_BUDGET // span.layout.n_tokens)
        number += 1
        if number <= mine:
            yield from repeat(None, len(chunk))
            continue
        mine = next(turns)
        for sample in extract(mlm, prompts, sites=("projector", "hidden", "key")):
            f = sample.images[0]
            k_LPHD = f["key"].flatten(1, 2).unflatten(-1, (mlm.n_kv_heads, -1))
            # What layer l reads: the image tokens at first, then what layer l - 1 put out.
            reads = [f["projector"][0], *f["hidden"][:-1]]
            massive_LP = torch.stack([massive(x.flatten(0, 1)) for x in reads])
            yield k_LPHD.transpose(1, 2), massive_LP, sample.layouts[0]


def massive(x_PC: Tensor) -> Tensor:
    """(P,) bool: cells with a massive activation, |x| > 100 and > 1000 times the median |x|.

    Source: Sun et al. 2024, arXiv 2402.17762, section 2; the median is over the image's cells.
    """
    size_PC = x_PC.float().abs()
    limit = (TIMES_MEDIAN * size_PC.median()).clamp(min=MASSIVE)
    return (size_PC > limit).any(-1)


def _biases(mlm: Mlm) -> Tensor | None:
    """(L, H, 1, D) of `k_proj`, in float64; None for a model without."""
    biases = [mlm.key_bias(layer) for layer in range(mlm.n_layers)]
    known = [b.detach().double().to(mlm.device) for b in biases if b is not None]
    if not known:
        return None
    assert len(known) == len(biases), "some layers have a key bias and some have not"
    return torch.stack(known).unflatten(-1, (mlm.n_kv_heads, 1, -1))


def _label(clusters: Sequence[Hashable], number: int) -> Hashable:
    if number >= len(clusters):
        raise ValueError(f"expected one cluster an image, found {len(clusters)} for more images")
    return clusters[number]


def _check_count(n: int) -> None:
    if n < FEWEST_IMAGES:
        raise ValueError(
            f"expected at least {FEWEST_IMAGES} images to tell which keys depend on them, found {n}"
        )


def _check_image(number: int, k_LHPD: Tensor, layout: Layout, first: Layout) -> None:
    _check_grid(number, layout, first)
    if not torch.isfinite(k_LHPD).all():
        raise BadKeys(number)


def _check_grid(number: int, layout: Layout, first: Layout) -> None:
    if layout.grid_hw != first.grid_hw or not torch.equal(layout.index_HW, first.index_HW):
        rows_cols = [" x ".join(map(str, found.grid_hw)) for found in (first, layout)]
        raise ValueError(
            f"image {number} ({layout.image_hw.height} x {layout.image_hw.width} pixels): expected "
            f"the first image's grid of {rows_cols[0]} cells, found {rows_cols[1]}; bring all "
            "images to one size first (kvfix.diagnose.keys.statistics.to_square), which also fixes "
            "the grid of a model with dynamic resolution"
        )
