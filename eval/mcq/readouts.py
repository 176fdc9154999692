"""Readouts: answer a multiple-choice question from features alone, without training.

What a question compares is read from its options, never from its answer: images ("the second
image") or marked points ("Point B"). The image or the point that the question refers to (image 1,
the point REF) is compared with each option's, and the most similar one is the readout's choice:

  Art_Style                 Gram matrices F^T F / cells of the features F (cells x channels), by
                            Frobenius distance.
  Visual_Similarity         mean feature of the cells, by cosine.
  *_Correspondence          bilinear features at the points, by cosine.

Features are taken as they are. Subtracting their mean over the question's images was tried on the
scenes' val split (100 questions a task, shipped nano, value states): best layer 0.63 instead of
0.58 for Art_Style, 0.86 and 0.86 for Visual, 0.61 and 0.62 for Semantic Correspondence, 1.00 and
1.00 for Visual_Similarity: nowhere more than its error of 0.05, so the paper's plain form stays.

Points are the question's own; where it has none they are the markers drawn on its images (see
``markers``). A question whose options or markers cannot be read has no readout: never a guess.

Shapes: I images, S sites of one kind, H x W grid cells, C channels, K options.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count, groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from kvfix.data.units import Question
from kvfix.eval.grid import PIXEL_CENTRE, sample_cells, to_cells
from kvfix.eval.mcq.markers import find_markers
from kvfix.eval.probes.score import check_sites, site_chunks
from kvfix.eval.source import Source, View

REFERENCE = "REF"  # label of the reference point where a benchmark drew it

_ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "1": 0, "2": 1, "3": 2, "4": 3}
_LETTER = re.compile(r"\s*(?:\([A-Z]\)|[A-Z][.):])\s+(?=\S)")  # "(A) " before the option itself
_IMAGE = re.compile(
    r"\s*(?:the\s+)?(?:(first|second|third|fourth)\s+(?:image|picture)|(?:image|picture)\s+([1-4]))"
    r"\s*\.?\s*",
    re.IGNORECASE,
)
_POINT = re.compile(r"\s*(?:the\s+)?(?:point\s+)?\(?([A-Z])\)?\s*\.?\s*", re.IGNORECASE)


class Readout(NamedTuple):
    """What each site's features answer."""

    choice_S: np.ndarray  # int64, index of the chosen option; the first of those that tie
    # Float64 >= 0, by how much the chosen option's score exceeds the next one's: in cosine; for
    # Gram matrices in distance, as a share of all options' distances.
    margin_S: np.ndarray
    chance: float  # share of right choices of a readout that knows nothing: 1 / K


class Images(NamedTuple):
    """Option k is image `options[k]`, compared with image 0."""

    options: tuple[int, ...]


class Points(NamedTuple):
    """Option k is a point of image 1, compared with a point of image 0."""

    reference_12: np.ndarray  # (1, 2) float64 (x, y) in pixels, pixel centres at integers
    options_K2: np.ndarray  # (K, 2), the same in image 1
    found: bool  # whether the points are markers found on the images, not the question's own


class Marked(NamedTuple):
    """A question's images as a model holds them, and what is to be compared on them."""

    views: list[View]
    compared: Images | Points


def image_options(question: Question) -> Images | str:
    """The images that the options name; why not, where they do not."""
    options = []
    for choice in question.choices:
        named = _IMAGE.fullmatch(_LETTER.sub("", choice, count=1))
        if named is None:
            return "an option names no image"
        options.append(_ORDINALS[(named[1] or named[2]).lower()])
    if len(set(options)) != len(options) or not all(0 < i < len(question.images) for i in options):
        return "the options are not different images after the first"
    return Images(tuple(options))


def point_options(question: Question) -> Points | str:
    """The points that the options name, given or found by their markers; why not, where neither."""
    named = [_POINT.fullmatch(_LETTER.sub("", choice, count=1)) for choice in question.choices]
    labels = tuple(match[1].upper() for match in named if match is not None)
    if len(labels) != len(question.choices) or len(set(labels)) != len(labels):
        return "the options are not different points"
    if len(question.images) != 2:
        return "points are compared between two images, and there are not two"
    if any(question.points):
        reference, there = question.points
        at = {label: (x, y) for label, x, y in there}
        if len(reference) != 1 or len(at) != len(there) or not set(labels) <= at.keys():
            return "the given points are not one reference and one point an option"
        return _points(reference[0][1:], [at[label] for label in labels], found=False)
    source = find_markers(question.images[0], labels=(REFERENCE,))
    if source is None:
        return "the reference's marker was not found in the first image"
    target = find_markers(question.images[1], labels=labels)
    if target is None:
        return "the options' markers were not found in the second image"
    return _points(source[REFERENCE], [target[label] for label in labels], found=True)


def _points(
    reference: tuple[float, float], options: Sequence[tuple[float, float]], *, found: bool
) -> Points:
    return Points(np.array([reference], np.float64), np.array(options, np.float64), found)


def gram_scores(marked: Marked, kind: str) -> torch.Tensor:
    """(S, K) float32: minus each option's Frobenius distance to image 0 between Gram matrices.

    Distances are shares of their sum: margins of sites of any scale compare.
    """
    assert isinstance(marked.compared, Images)
    features = _features(marked, kind)
    distances = []
    for part in site_chunks(len(features[0]), features[0].shape[-1] ** 2):
        reference_SCC = _gram(features[0][part])
        apart = [
            (_gram(features[i][part]) - reference_SCC).flatten(1).norm(dim=1)
            for i in marked.compared.options
        ]
        distances.append(torch.stack(apart, dim=1))
    distance_SK = torch.cat(distances)
    return -distance_SK / distance_SK.sum(1, keepdim=True).clamp(min=1e-30)


def _gram(f_SHWC: torch.Tensor) -> torch.Tensor:
    f_SNC = f_SHWC.flatten(1, 2).float()
    return f_SNC.mT @ f_SNC / f_SNC.shape[1]


def pooled_scores(marked: Marked, kind: str) -> torch.Tensor:
    """(S, K) float32: cosine between the mean features of image 0 and of each option's image."""
    assert isinstance(marked.compared, Images)
    means = [
        functional.normalize(f_SHWC.float().mean((1, 2)), dim=-1)
        for f_SHWC in _features(marked, kind)
    ]
    return torch.stack([(means[0] * means[i]).sum(-1) for i in marked.compared.options], dim=1)


def point_scores(marked: Marked, kind: str) -> torch.Tensor:
    """(S, K) float32: cosine between the features at the reference and at each option's point."""
    assert isinstance(marked.compared, Points)
    _features(marked, kind)  # checked only: a mosaic's features are large, a few points are not
    source, target = marked.views
    reference_S1C = _at(source, kind, marked.compared.reference_12)
    options_SKC = _at(target, kind, marked.compared.options_K2)
    return (reference_S1C * options_SKC).sum(-1)


def _at(view: View, kind: str, xy_K2: np.ndarray) -> torch.Tensor:
    """(S, K, C) unit features at points."""
    cells_K2 = to_cells(xy_K2 + PIXEL_CENTRE, view.layout)
    return functional.normalize(sample_cells(view.features[kind], cells_K2), dim=-1)


def _features(marked: Marked, kind: str) -> list[torch.Tensor]:
    features = [view.features[kind] for view in marked.views]
    check_sites(*features)
    return features


class Rule(NamedTuple):
    """How a sub-task is read out: what its options compare, and how similar they are."""

    options: Callable[[Question], Images | Points | str]
    scores: Callable[[Marked, str], torch.Tensor]


READOUTS: dict[str, Rule] = {
    "Art_Style": Rule(image_options, gram_scores),
    "Visual_Similarity": Rule(image_options, pooled_scores),
    "Visual_Correspondence": Rule(point_options, point_scores),
    "Semantic_Correspondence": Rule(point_options, point_scores),
    "Functional_Correspondence": Rule(point_options, point_scores),
}


def compared(question: Question) -> Images | Points | str:
    """What a question compares, or why it has no readout: one of a few sentences."""
    rule = READOUTS.get(question.sub_task)
    return "the sub-task has no readout" if rule is None else rule.options(question)


def views_of_each(questions: Sequence[Question], source: Source) -> Iterator[Marked | str]:
    """Read each question's images; why not, where it has no readout (then nothing is read).

    Each image is alone in its prompt, as in every probe: its features depend on nothing but the
    image, and its grid is the finest that the model has. Images of one size share forward passes,
    also those of different questions: of a small model a pass costs more than its images do. No
    more is held than a pass and a question.
    """
    asked = [compared(question) for question in questions]
    read = [q for q, found in zip(questions, asked, strict=True) if not isinstance(found, str)]
    views = _views_in_order(read, source)
    for question, found in zip(questions, asked, strict=True):
        if isinstance(found, str):
            yield found
        else:
            yield Marked(list(islice(views, len(question.images))), found)


def _views_in_order(questions: Sequence[Question], source: Source) -> Iterator[View]:
    """Views of one question's images after another's."""
    number = count()

    def alike(question: Question) -> tuple[int, int] | int:
        sizes = {image.size for image in question.images}
        return sizes.pop() if len(sizes) == 1 else next(number)  # else in passes of its own

    for _, together in groupby(questions, alike):
        yield from source.views([image for question in together for image in question.images])


def read_out(question: Question, marked: Marked, kind: str) -> Readout:
    """The readout of every site of a kind, of what `views_of_each` made of a question."""
    score_SK = READOUTS[question.sub_task].scores(marked, kind).double().cpu().numpy()
    if not np.isfinite(score_SK).all():
        raise ValueError(
            f"{question.id}: expected finite features, found NaN or infinity in {kind}; try "
            "another dtype"
        )
    next_S, best_S = np.sort(score_SK, axis=1)[:, -2:].T
    return Readout(score_SK.argmax(1), best_S - next_S, 1 / len(question.choices))
