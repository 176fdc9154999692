"""The words of every cell of a picture: what image tokens are taught to carry.

A cell's words are those of the objects it shows, by area, its row and column, and the letter drawn
in it. Their embeddings, added up, are what the language model reads in place of a picture before it
has seen one, and what the projector is aligned to.

Shapes: B pictures, C cells, T things of a picture (0 is the ground), V vocabulary.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from gallery import ATTRIBUTES, CELL_SIDE, LETTERS, THINGS, Gallery, Labels, cell_shares
from models import Nano
from turns import Shown

from kvfix.data.scenes.shapes import silhouette
from kvfix.data.scenes.talk import COLUMNS, ROWS

SKETCH = 40  # pixels a side of a picture that nobody sees
BESIDE = (0.07, -0.05)  # where a letter's ink lies, seen from its mark, of the side


def _word(tokenizer, word: str) -> torch.Tensor:
    """(V,) summing to 1: a word as sentences hold it, with and without a space before."""
    forms = [tokenizer.encode(form, add_special_tokens=False) for form in (word, " " + word)]
    whole = [form[0] for form in forms if len(form) == 1]
    out_V = torch.zeros(len(tokenizer))
    out_V[whole] = 1 / len(whole)
    return out_V


class Words:
    """The word vectors of a vocabulary that cells are described with."""

    def __init__(self, nano: Nano):
        """Look all words up."""
        tok = nano.processor.tokenizer
        nothing = torch.zeros(len(tok))
        self.of_attribute = [
            torch.stack([nothing, *(_word(tok, w) for w in words)]) for words in ATTRIBUTES.values()
        ]
        self.of_letter = torch.stack([nothing, *(_word(tok, w) for w in LETTERS)])
        self.ground_V = _word(tok, "ground")
        third = [(i * 3 + 1) // CELL_SIDE for i in range(CELL_SIDE)]
        rows, columns = (torch.stack([_word(tok, w) for w in ws]) for ws in (ROWS, COLUMNS))
        self.place_CV = (rows[third][:, None] + columns[third][None]).flatten(0, 1)

    def of(self, truth: Labels) -> torch.Tensor:
        """(B, C, V) weights of every cell's words, of length 1."""
        tables = enumerate(self.of_attribute)
        words_BTV = torch.stack([t[truth.things[..., k].long()] for k, t in tables]).sum(0)
        words_BTV[:, 0] += self.ground_V
        out_BCV = truth.shares.float() @ words_BTV
        out_BCV += self.place_CV + self.of_letter[truth.letters.long()]
        return torch.nn.functional.normalize(out_BCV, dim=-1)


def sketch(shown: Shown) -> Labels:
    """The labels of a scene that is not painted, with a batch dimension of one."""
    instance_HW = np.zeros((SKETCH, SKETCH), np.uint8)
    things = torch.zeros(1, THINGS + 1, len(ATTRIBUTES), dtype=torch.uint8)
    for i, t in enumerate(shown.scene.things):
        centre = (t.x * SKETCH - 0.5, t.y * SKETCH - 0.5)
        instance_HW[silhouette(t.shape, centre, t.radius * SKETCH, t.angle, SKETCH)] = i + 1
        for k, (name, words) in enumerate(ATTRIBUTES.items()):
            things[0, i + 1, k] = 1 + words.index(getattr(t, name))
    letters = torch.zeros(1, CELL_SIDE, CELL_SIDE, dtype=torch.uint8)
    for letter, x, y in shown.marks:
        for dx, dy in ((0.0, 0.0), BESIDE):
            row, column = (int(np.clip(c * CELL_SIDE, 0, CELL_SIDE - 1)) for c in (y + dy, x + dx))
            letters[0, row, column] = 1 + LETTERS.index(letter)
    shares = torch.from_numpy(cell_shares(instance_HW))[None]
    none = torch.zeros(0)
    return Labels(shares, things, none, none, letters.flatten(1), none)


@lru_cache(maxsize=4)
def words_of(nano: Nano) -> Words:
    """The words of a nano's vocabulary."""
    return Words(nano)


LETTER_WEIGHT = 4.0  # of a cell with a letter against one without


def align_loss(nano: Nano, pixels: dict[str, torch.Tensor], truth: Labels) -> torch.Tensor:
    """How far image tokens are from the sums of their cells' words, as a share of these sums.

    Squared distances, mean over cells; those with a letter count more.
    """
    table_VD = nano.model.get_input_embeddings().weight.detach()
    target_BCD = (words_of(nano).of(truth) @ table_VD).float()
    error_BC = (nano.look(nano.model, pixels).float() - target_BCD).square().sum(-1)
    weight_BC = torch.where(truth.letters > 0, LETTER_WEIGHT, 1.0)
    share = (error_BC * weight_BC).sum() / weight_BC.sum()
    return share / target_BCD.square().sum(-1).mean()


class AlignGrade(NamedTuple):
    """Held-out: which word of its kind a token lies nearest to, share right in [0, 1]."""

    shape: float  # of cells that mostly show an object
    colour: float
    texture: float
    letter: float  # of cells that hold a letter, among the letters
    error: float  # `align_loss`


@torch.inference_mode()
def examine_align(nano: Nano, gallery: Gallery) -> AlignGrade:
    """Read image tokens by the word table, over a held-out gallery."""
    words, table_VD = words_of(nano), nano.model.get_input_embeddings().weight
    right: dict[str, list[torch.Tensor]] = {name: [] for name in AlignGrade._fields}
    for start in range(0, gallery.n, 64):
        pixels, truth = gallery.take(nano, np.arange(start, min(start + 64, gallery.n)), seed=start)
        right["error"].append(align_loss(nano, pixels, truth)[None])
        tokens_BCD = nano.look(nano.model, pixels)
        share_BC, mostly_BC = truth.shares.float().max(-1)
        solid_BC = (mostly_BC > 0) & (share_BC > 0.7)
        for k, name in enumerate(ATTRIBUTES):
            of_BC = truth.things[..., k].long().gather(1, mostly_BC)
            said_BC = _nearest(tokens_BCD, words.of_attribute[k][1:] @ table_VD)
            right[name].append((said_BC == of_BC - 1)[solid_BC])
        said_BC = _nearest(tokens_BCD, words.of_letter[1:] @ table_VD)
        right["letter"].append((said_BC == truth.letters.long() - 1)[truth.letters > 0])
    return AlignGrade(**{k: float(torch.cat(v).float().mean()) for k, v in right.items()})


def _nearest(tokens_BCD: torch.Tensor, words_KD: torch.Tensor) -> torch.Tensor:
    """(B, C) the word with the largest product, their common part removed."""
    return (tokens_BCD @ (words_KD - words_KD.mean(0)).T).argmax(-1)
