"""Answer a multiple-choice question from features alone, without training.

| subtask | rule (kvfix's own reading of arXiv 2510.04819 and its neighbours) |
|---|---|
| Art_Style | the image whose Gram matrix over cells is most like that of the first |
| Visual_Similarity | the image whose mean feature is most like that of the first |
| Visual, Semantic, Functional_Correspondence | the marked point most like the reference point |

Likeness is the cosine of features less their mean over all cells of the question's images: what
all cells share says nothing about an option. Each image is read alone in its prompt, as probes do,
so that a readout cannot borrow from the question's words or from the other images.

Marked points come with the question where its maker kept them; else the drawn markers are looked
for, and a question whose markers are not found beyond doubt has no readout.

Shapes: S sites, N cells of an image, K points, O options, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from kvfix.data.units import Question
from kvfix.eval.grid import sample_cells, to_cells
from kvfix.eval.markers import find_markers
from kvfix.eval.source import Source, View
from kvfix.eval.unit import site_chunks

_ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3}
_PIXEL_CENTRE = 0.5  # points have pixel centres at integers, layouts at halves
_REFERENCE = "REF"  # the label that BLINK draws at the point of the first image


class Readout(NamedTuple):
    """What each site's features answer.

    Attributes:
        choice_S: index of the option, int.
        margin_S: likeness of that option less that of the next, in 0..2.
    """

    choice_S: np.ndarray
    margin_S: np.ndarray


class Marked(NamedTuple):
    """The views of a question, and where its marked points lie (None where it has none)."""

    views: list[View]
    reference_xy: np.ndarray | None = None  # (1, 2) pixels of the first image
    options_xy: np.ndarray | None = None  # (O, 2) pixels of the second image, by option


def question_views(question: Question, source: Source) -> Marked | str:
    """Read a question's images; a text says why it has no readout, and nothing was read.

    Args:
        question: of any subtask.
        source: where features come from.
    """
    rule = READOUTS.get(question.sub_task)
    if rule is None:
        return f"no rule for {question.sub_task}"
    if rule is _by_points:
        points = _points(question)
        if isinstance(points, str):
            return points
        return Marked(list(source.views(question.images[:2])), *points)
    if _meant(question) is None:
        return "the options do not name images"
    return Marked(list(source.views(question.images)))


def read_out(question: Question, marked: Marked, kind: str) -> Readout:
    """Answer a question from the features of one kind.

    Args:
        question: as it was given to `question_views`.
        marked: what came back.
        kind: of the views' features.
    """
    likeness_SO = READOUTS[question.sub_task](question, marked, kind).double().cpu().numpy()
    ranked_SO = np.sort(likeness_SO, axis=1)
    margin_S = ranked_SO[:, -1] - ranked_SO[:, -2]
    return Readout(likeness_SO.argmax(1), margin_S)


def _centred(views: Sequence[View], kind: str, part: slice) -> list[torch.Tensor]:
    """f_SNC of each image, float32, less the mean over all cells of all images."""
    flat = [view.features[kind][part].flatten(1, 2).float() for view in views]
    mean_S1C = torch.cat(flat, dim=1).mean(1, keepdim=True)
    return [f_SNC - mean_S1C for f_SNC in flat]


def _parts(views: Sequence[View], kind: str) -> list[slice]:
    """Chunks of sites whose features and products fit into memory."""
    shapes = [view.features[kind].shape for view in views]
    cells = max(s[1] * s[2] for s in shapes)
    a_site = sum(s[1] * s[2] * s[3] for s in shapes) + cells**2
    return list(site_chunks(shapes[0][0], a_site))


def _by_gram(question: Question, marked: Marked, kind: str) -> torch.Tensor:
    """Cosine of Gram matrices (C, C) in the Frobenius product, without ever making them.

    <A'A, B'B> is the squared norm of the (N, N) matrix AB'.
    """
    meant = _meant(question)
    assert meant is not None
    found = []
    for part in _parts(marked.views, kind):
        f = _centred(marked.views, kind, part)
        own = {i: _gram_product(f[i], f[i]) for i in {0, *meant}}
        columns = [_gram_product(f[0], f[i]) / (own[0] * own[i]).sqrt() for i in meant]
        found.append(torch.stack(columns, dim=1))
    return torch.cat(found).nan_to_num()


def _gram_product(a_SNC: torch.Tensor, b_SMC: torch.Tensor) -> torch.Tensor:
    """(S,) mean square of the products of all cells of two images."""
    return torch.bmm(a_SNC, b_SMC.mT).square().mean((1, 2))


def _by_mean(question: Question, marked: Marked, kind: str) -> torch.Tensor:
    """Cosine of mean features."""
    meant = _meant(question)
    assert meant is not None
    found = []
    for part in _parts(marked.views, kind):
        mean = [f_SNC.mean(1) for f_SNC in _centred(marked.views, kind, part)]
        columns = [functional.cosine_similarity(mean[0], mean[i], dim=-1) for i in meant]
        found.append(torch.stack(columns, dim=1))
    return torch.cat(found)


def _by_points(question: Question, marked: Marked, kind: str) -> torch.Tensor:
    """Cosine of the features at the reference point and at each option's point."""
    first, second = marked.views
    assert marked.reference_xy is not None and marked.options_xy is not None
    found = []
    for part in _parts(marked.views, kind):
        f_SNC = _centred(marked.views, kind, part)
        grids = [
            f.unflatten(1, view.features[kind].shape[1:3])
            for f, view in zip(f_SNC, marked.views, strict=True)
        ]
        at = to_cells(marked.reference_xy + _PIXEL_CENTRE, first.layout)
        options = to_cells(marked.options_xy + _PIXEL_CENTRE, second.layout)
        reference_S1C = sample_cells(grids[0], at)
        options_SOC = sample_cells(grids[1], options)
        found.append(functional.cosine_similarity(reference_S1C, options_SOC, dim=-1))
    return torch.cat(found)


def _meant(question: Question) -> list[int] | None:
    """The image that each option names ("the third image"); None if one names none of them."""
    meant = []
    for choice in question.choices:
        named = [n for word, n in _ORDINALS.items() if re.search(rf"\b{word}\b", choice.lower())]
        if len(named) != 1 or not 0 < named[0] < len(question.images):
            return None
        meant.append(named[0])
    return meant if len(set(meant)) == len(meant) else None


def _points(question: Question) -> tuple[np.ndarray, np.ndarray] | str:
    """Reference (1, 2) and option points (O, 2), or why there are none."""
    if len(question.images) < 2:
        return f"expected two images, found {len(question.images)}"
    labels = [_label(choice) for choice in question.choices]
    if None in labels or len(set(labels)) < len(labels):
        return "the options do not name points"
    names = tuple(str(label) for label in labels)
    if question.points:
        first, second = ({label: (x, y) for label, x, y in marks} for marks in question.points[:2])
    else:
        found = [
            find_markers(image, labels=wanted)
            for image, wanted in zip(question.images, ((_REFERENCE,), names), strict=False)
        ]
        if None in found:
            return "markers not found beyond doubt"
        first, second = (marks or {} for marks in found)
    if len(first) != 1 or not set(names) <= second.keys():
        return "marked points do not fit the options"
    return np.array(list(first.values())), np.array([second[name] for name in names])


def _label(choice: str) -> str | None:
    """The letter of a point: "A", "(A)", "Point A"."""
    match = re.fullmatch(r"(?:[Pp]oint\s+)?\(?([A-E])\)?", choice.strip())
    return match[1] if match else None


READOUTS: dict[str, Callable[[Question, Marked, str], torch.Tensor]] = {
    "Art_Style": _by_gram,
    "Visual_Similarity": _by_mean,
    "Visual_Correspondence": _by_points,
    "Semantic_Correspondence": _by_points,
    "Functional_Correspondence": _by_points,
}
"""Subtask -> likeness (S, O) of each option."""
