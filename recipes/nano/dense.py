"""First stage: heads that read every cell's labels off the vision tower.

The heads are thrown away afterwards.

Shapes: B pictures, C cells, T things of a picture (0 is ground), K classes of a label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from gallery import ATTRIBUTES, CELL_SIDE, FINE, LETTERS, Gallery, Labels
from models import Nano
from torch import nn

CLASSES = {name: len(words) + 1 for name, words in ATTRIBUTES.items()}  # 0 is ground
LETTER_WEIGHT = 8.0  # of a cell with a letter against one without: few cells hold one


class Heads(nn.Module):
    """One linear layer a label, on normalised features."""

    def __init__(self, width: int):
        """Of features (..., width)."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        sizes = {**CLASSES, "letter": len(LETTERS) + 1, "figure": FINE**2, "centre": 2, "ink": 2}
        self.read = nn.ModuleDict({name: nn.Linear(width, k) for name, k in sizes.items()})

    def forward(self, features_BCD: torch.Tensor) -> dict[str, torch.Tensor]:
        """Log-probabilities (B, C, K); of points logits, to centres and inks the way."""
        x = self.norm(features_BCD.float())
        said = {name: read(x).float() for name, read in self.read.items()}
        plain = ("figure", "centre", "ink")
        return {k: v if k in plain else v.log_softmax(-1) for k, v in said.items()}


def dense_loss(said: dict[str, torch.Tensor], truth: Labels) -> torch.Tensor:
    """Cross entropies in nats, one term a label; shapes, colours and textures by share of area."""
    total = torch.zeros(())
    for k, name in enumerate(ATTRIBUTES):
        of_TK = nn.functional.one_hot(truth.things[..., k].long(), CLASSES[name]).float()
        target_BCK = truth.shares.float() @ of_TK
        total = total - (target_BCK * said[name]).sum(-1).mean()
    figure = nn.functional.binary_cross_entropy_with_logits(said["figure"], truth.figure.float())
    centre = offset_error(said["centre"], truth)
    weight = torch.full((len(LETTERS) + 1,), LETTER_WEIGHT)
    weight[0] = 1.0
    letter = nn.functional.nll_loss(
        said["letter"].flatten(0, 1), truth.letters.flatten().long(), weight
    )
    return total + 2 * figure + centre + 2 * letter + ink_error(said["ink"], truth)


def offset_error(said_BC2: torch.Tensor, truth: Labels) -> torch.Tensor:
    """Mean distance, in radii, of the centre of a cell's object from where it is said to lie."""
    grid = (torch.arange(CELL_SIDE) + 0.5) / CELL_SIDE
    cells_C2 = torch.stack([grid.repeat(CELL_SIDE), grid.repeat_interleave(CELL_SIDE)], -1)
    share_BC, mostly_BC = truth.shares.float().max(-1)
    centres_BC3 = truth.centres.gather(1, mostly_BC[..., None].expand(-1, -1, 3))
    offset_BC2 = (centres_BC3[..., :2] - cells_C2) / centres_BC3[..., 2:]
    on_BC = ((mostly_BC > 0) & (share_BC > 0.3)).float()
    error_BC = (said_BC2 - offset_BC2).abs().sum(-1)
    return (error_BC * on_BC).sum() / on_BC.sum().clamp(min=1)


def ink_error(said_BC2: torch.Tensor, truth: Labels) -> torch.Tensor:
    """Mean distance, in cells, of a letter's middle from where it is said to lie."""
    on_BC = (truth.letters > 0).float()
    return ((said_BC2 - truth.inks).abs().sum(-1) * on_BC).sum() / on_BC.sum().clamp(min=1)


class DenseGrade(NamedTuple):
    """Held-out accuracies in [0, 1], by cell."""

    shape: float  # of cells that mostly show an object
    colour: float
    texture: float
    figure: float  # of points, on an object or not
    letter: float  # of cells that hold a letter: the right one said
    no_letter: float  # of cells that hold none: none said
    centre: float  # not an accuracy: mean error in radii
    ink: float  # likewise, in cells


@torch.inference_mode()
def examine_dense(nano: Nano, heads: Heads, gallery: Gallery) -> DenseGrade:
    """Accuracies over a held-out gallery."""
    right: dict[str, list[torch.Tensor]] = {name: [] for name in DenseGrade._fields}
    for start in range(0, gallery.n, 64):
        pixels, truth = gallery.take(nano, np.arange(start, min(start + 64, gallery.n)), seed=start)
        found = heads(nano.see(nano.model, pixels))
        right["centre"].append(offset_error(found["centre"], truth)[None])
        right["ink"].append(ink_error(found["ink"], truth)[None])
        right["figure"].append(((found["figure"] > 0) == truth.figure).flatten())
        said = {k: v.argmax(-1) for k, v in found.items()}
        mostly = truth.shares.argmax(-1)
        solid = (mostly > 0) & (truth.shares.amax(-1) > 0.7)
        for k, name in enumerate(ATTRIBUTES):
            of = truth.things[..., k].long().gather(1, mostly)
            right[name].append((said[name] == of)[solid])
        held, letter_right = truth.letters > 0, said["letter"] == truth.letters
        right["letter"].append(letter_right[held])
        right["no_letter"].append(letter_right[~held])
    return DenseGrade(**{k: float(torch.cat(v).float().mean()) for k, v in right.items()})
