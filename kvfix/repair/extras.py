"""What the data knows about one sample beside its prompt, on the grids of its images.

Shapes: H, W rows and columns of a grid, K points, O options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kvfix.data.training.examples import Example, Mask, MatchedPoints
from kvfix.data.units import Question
from kvfix.eval.grid import PIXEL_CENTRE, to_cells, to_grid
from kvfix.eval.mcq.readouts import Images, Points, compared
from kvfix.mlm.layout import Layout


class MaskTarget(NamedTuple):
    """A mask on one image of a sample, through its grid (`kvfix.eval.grid.to_grid`)."""

    image: int  # which image of the sample
    share_HW: Tensor  # in [0, 1], foreground share of each cell
    valid_HW: Tensor  # in [0, 1], how much of each cell counts
    category: int = 0  # output of the mask head that learns it; -1: none does
    # Whether the sample's text names it (its last token is then a query for it).
    named: bool = False


class Matches(NamedTuple):
    """Points of two images of a sample that show the same."""

    images: tuple[int, int]  # which two
    # For each of the two, fractional (row, column) on its grid (`kvfix.eval.grid.to_cells`).
    rc_K2: tuple[Tensor, Tensor]
    valid_K: Tensor  # bool, points seen in both


class Choice(NamedTuple):
    """A multiple-choice question."""

    row: int  # row of the logits that predicts the option letter
    letters_O: Tensor  # token ids of the option letters


class ReadableQuestion(NamedTuple):
    """A question that features alone can answer."""

    sub_task: str  # which rule of `kvfix.eval.mcq.readouts.READOUTS`
    compared: Images | Points  # what its options compare


@dataclass(frozen=True)
class Extras:
    """What the data knows about one sample beside its prompt; all of it may be missing."""

    masks: tuple[MaskTarget, ...] = ()  # masks on its images
    matches: tuple[Matches, ...] = ()  # matched points of pairs of its images
    choice: Choice | None = None  # for a multiple-choice question
    readable: ReadableQuestion | None = None  # for one that a readout can answer
    # Its images stand in for none (a text-only sample): terms leave them out.
    stand_in: bool = False

    def readable_of(self, kinds: tuple[str, ...]) -> ReadableQuestion | None:
        """Its question if a readout can answer it, and it is of these kinds; empty is any."""
        found = self.readable
        return found if found and (not kinds or found.sub_task in kinds) else None


def extras_of(example: Example, layouts: Sequence[Layout], choice: Choice | None) -> Extras:
    """What an example knows, given the layout of each of its images."""
    return Extras(
        tuple(_target(mask, layouts[mask.image]) for mask in example.masks),
        tuple(_matches(points, layouts) for points in example.matches),
        choice,
        None if example.question is None else _readable(example.question),
        stand_in=not example.images,
    )


def _target(mask: Mask, layout: Layout) -> MaskTarget:
    share_HW, valid_HW = to_grid(mask.mask_HW, layout)
    return MaskTarget(mask.image, share_HW, valid_HW, mask.category, mask.named)


def _matches(points: MatchedPoints, layouts: Sequence[Layout]) -> Matches:
    images = points.image_a, points.image_b
    a, b = (
        to_cells(xy_K2 + PIXEL_CENTRE, layouts[image])
        for image, xy_K2 in zip(images, (points.a_K2, points.b_K2), strict=True)
    )
    return Matches(images, (a, b), torch.ones(len(points.a_K2), dtype=torch.bool))


def _readable(question: Question) -> ReadableQuestion | None:
    found = compared(question)
    return None if isinstance(found, str) else ReadableQuestion(question.sub_task, found)
