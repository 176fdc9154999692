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
        return torch.nn.functional.normalize(self.counted(truth), dim=-1)

    def counted(self, truth: Labels) -> torch.Tensor:
        """(B, C, V) weights of every cell's words: an object's count by its share of the cell."""
        tables = enumerate(self.of_attribute)
        words_BTV = torch.stack([t[truth.things[..., k].long()] for k, t in tables]).sum(0)
        words_BTV[:, 0] += self.ground_V
        out_BCV = truth.shares.float() @ words_BTV
        return out_BCV + self.place_CV + self.of_letter[truth.letters.long()]


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


LETTER_WEIGHT = 8.0  # of a cell with a letter against one without
SHARPNESS = 4.0  # log-odds of a word against one as far away as words of its kind lie apart


class Reading(NamedTuple):
    """What N tokens are read as, among the K words of one kind."""

    kind: str
    logits_NK: torch.Tensor
    of_N: torch.Tensor  # the right word


@torch.autocast("cpu", enabled=False)  # in bfloat16 near words could not be told apart
def readings(nano: Nano, tokens_BCD: torch.Tensor, truth: Labels) -> list[Reading]:
    """Read one kind of word from each token, its cell's other words taken away.

    Attributes are read from cells that mostly show an object, letters from all, where word 0 is no
    letter. Words differ in length, so the nearest word is asked for, not the largest product.
    """
    table_VD, words = nano.model.get_input_embeddings().weight.detach(), words_of(nano)
    counted_BCV = words.counted(truth)
    length_BC1 = counted_BCV.norm(dim=-1, keepdim=True)
    rest_BCD = tokens_BCD.float() * length_BC1 - counted_BCV @ table_VD
    share_BC, mostly_BC = truth.shares.float().max(-1)
    solid_BC = (mostly_BC > 0) & (share_BC > 0.7)
    found = []
    for k, name in enumerate(ATTRIBUTES):
        of_N = truth.things[..., k].long().gather(1, mostly_BC)[solid_BC] - 1
        rest_ND = (rest_BCD / share_BC[..., None].clamp(min=0.5))[solid_BC]
        logits_NK = _closeness(rest_ND, words.of_attribute[k][1:] @ table_VD, of_N)
        found.append(Reading(name, logits_NK, of_N))
    letters_N = truth.letters.long().flatten()
    logits_NK = _closeness(rest_BCD.flatten(0, 1), words.of_letter @ table_VD, letters_N)
    return [*found, Reading("letter", logits_NK, letters_N)]


def _closeness(rest_ND: torch.Tensor, words_KD: torch.Tensor, of_N: torch.Tensor) -> torch.Tensor:
    """(N, K) logits: how near `rest` and the right word together lie to each word."""
    apart = torch.pdist(words_KD).square().mean()
    away_NKD = (rest_ND + words_KD[of_N])[:, None] - words_KD
    return -SHARPNESS * away_NKD.square().sum(-1) / apart


def distance(nano: Nano, tokens_BCD: torch.Tensor, truth: Labels) -> torch.Tensor:
    """How far image tokens are from the sums of their cells' words, as a share of these sums."""
    table_VD = nano.model.get_input_embeddings().weight.detach()
    target_BCD = (words_of(nano).of(truth) @ table_VD).float()
    return (tokens_BCD.float() - target_BCD).square().mean() / target_BCD.square().mean()


def align_loss(
    nano: Nano, pixels: dict[str, torch.Tensor], truth: Labels, *, read: float
) -> torch.Tensor:
    """The distance, and `read` times the cross entropies in nats of reading each kind of word.

    By distance alone shapes lag far behind colours (README).
    """
    tokens_BCD = nano.look(nano.model, pixels)
    total = distance(nano, tokens_BCD, truth)
    for kind, logits_NK, of_N in readings(nano, tokens_BCD, truth) if read else ():
        weight_K = torch.ones(logits_NK.shape[-1])
        if kind == "letter":
            weight_K[1:] = LETTER_WEIGHT
        total += read * torch.nn.functional.cross_entropy(logits_NK, of_N, weight_K)
    return total


class AlignGrade(NamedTuple):
    """Held-out: which word of its kind a token is read as, share right in [0, 1]."""

    shape: float  # of cells that mostly show an object
    colour: float
    texture: float
    letter: float  # of cells that hold a letter
    no_letter: float  # of cells that hold none
    error: float  # `distance`


@torch.inference_mode()
def examine_align(nano: Nano, gallery: Gallery) -> AlignGrade:
    """Read image tokens by the word table, over a held-out gallery."""
    right: dict[str, list[torch.Tensor]] = {name: [] for name in AlignGrade._fields}
    for start in range(0, gallery.n, 64):
        pixels, truth = gallery.take(nano, np.arange(start, min(start + 64, gallery.n)), seed=start)
        tokens_BCD = nano.look(nano.model, pixels)
        right["error"].append(distance(nano, tokens_BCD, truth)[None])
        for read in readings(nano, tokens_BCD, truth):
            ok_N = read.logits_NK.argmax(-1) == read.of_N
            if read.kind != "letter":
                right[read.kind].append(ok_N)
                continue
            right["letter"].append(ok_N[read.of_N > 0])
            right["no_letter"].append(ok_N[read.of_N == 0])
    return AlignGrade(**{k: float(torch.cat(v).float().mean()) for k, v in right.items()})
