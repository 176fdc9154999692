"""First stage: pictures with a label for every cell, and heads that read them off the vision tower.

A cell's labels are the shape, colour and texture of what it shows (or ground), which of its pixels
belong to an object, how far away that object's centre lies, and the letter that is drawn in it. The
heads are thrown away afterwards.

Shapes: B pictures, C cells, T things of a picture (0 is ground), K classes of a label, F points of
a cell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from models import PATCH, SIDE, Nano
from PIL import Image
from torch import nn

from kvfix.data.scenes import SIZE, Scene, generator, render, sample_scene
from kvfix.data.shapes import COLOURS, GLYPHS, MARK_RGB, SHAPES, TEXTURES, mark
from kvfix.data.talk import VOCABULARY

LETTERS = tuple(GLYPHS)
THINGS = 4  # most objects of a picture
RING = 0.045  # radius of a mark's circle, of the picture's side
LEAST_INK = 0.25  # share of a letter's pixels that makes a cell hold the letter
FINE = 5  # points a side of a cell
APART = 0.2  # least distance of two marks
CLASSES = {name: len(words) + 1 for name, words in VOCABULARY.items()}  # 0 is ground
LETTER_WEIGHT = 12.0  # of a cell with a letter against one without: few cells hold one
ATTRIBUTES = {"shape": SHAPES, "colour": tuple(COLOURS), "texture": TEXTURES}


class Marked(NamedTuple):
    """A picture with letters drawn at marks; marks are (letter, x, y) in pixels."""

    scene: Scene
    image: Image.Image
    instance_HW: np.ndarray
    marks: list[tuple[str, float, float]]


def draw_picture(split: str, index: int) -> Marked:
    """A scene of one to four objects with up to five marks, on objects and anywhere else."""
    rng = generator(split, index, "dense")
    size = SIZE if rng.random() < 0.5 else int(rng.integers(120, 201))
    largest = (0.2, 0.28, 0.4)[int(rng.integers(3))]
    scene = sample_scene(rng, count=(1, THINGS), radius=(0.1, largest), allowed=0.3)
    picture = render(scene, size)
    letters = rng.permutation(LETTERS)[: int(rng.integers(len(LETTERS) + 1))]
    places: list[tuple[float, float]] = []
    for _ in letters:
        while True:
            x, y = rng.uniform(0.05, 0.95, 2)
            if rng.random() < 0.4:
                thing = scene.things[int(rng.integers(len(scene.things)))]
                x, y = np.array([thing.x, thing.y]) + rng.normal(0, 0.02, 2)
            if all(np.hypot(x - a, y - b) > APART for a, b in places):
                places.append((float(x), float(y)))
                break
            if rng.random() < 0.05:
                break  # crowded
    marks = [
        (str(letter), x * size, y * size) for letter, (x, y) in zip(letters, places, strict=False)
    ]
    return Marked(scene, mark(picture.image, marks), picture.instance_HW, marks)


def _per_cell(map_HW: np.ndarray) -> np.ndarray:
    """(C,) sums over the pixels of each cell, at any size of the picture."""
    side = SIDE // PATCH
    first = [-(-i * map_HW.shape[0] // side) for i in range(side)]
    rows = np.add.reduceat(map_HW.astype(np.float32), first, axis=0)
    return np.add.reduceat(rows, first, axis=1).reshape(-1)


def cell_shares(instance_HW: np.ndarray) -> np.ndarray:
    """(C, T) how much of each cell shows the ground, the first object, the second, ..."""
    size = instance_HW.shape[0]
    return (
        np.stack([_per_cell(instance_HW == i) for i in range(THINGS + 1)], axis=-1)
        / _per_cell(np.ones((size, size)))[:, None]
    )


def cell_figure(instance_HW: np.ndarray) -> np.ndarray:
    """(C, F) bool: the points of each cell that lie on an object, a fine grid row by row."""
    side, fine = SIDE // PATCH, SIDE // PATCH * FINE
    at = (2 * np.arange(fine) + 1) * instance_HW.shape[0] // (2 * fine)
    on = instance_HW[at[:, None], at[None]] > 0
    return on.reshape(side, FINE, side, FINE).swapaxes(1, 2).reshape(side**2, FINE**2)


def cell_letters(marks: list[tuple[str, float, float]], size: int) -> np.ndarray:
    """(C,) int64: 0, or 1 + the letter that is drawn in the cell or whose circle is centred there.

    A letter counts in every cell that holds a good part of its ink.
    """
    side = SIDE // PATCH
    y, x = np.mgrid[:size, :size]
    out = np.zeros((side, side), np.int64)
    for letter, cx, cy in marks:
        blank = Image.new("RGB", (size, size))
        drawn = (np.asarray(mark(blank, [(letter, cx, cy)])) == MARK_RGB).all(-1)
        ink_C = _per_cell(drawn & (np.hypot(x - cx, y - cy) > RING * size + 0.5))
        number = 1 + LETTERS.index(letter)
        out.reshape(-1)[ink_C >= LEAST_INK * ink_C.sum()] = number
        row, column = (int(np.clip(c * side / size, 0, side - 1)) for c in (cy, cx))
        out[row, column] = number
    return out.reshape(-1)


class Labels(NamedTuple):
    """Labels of a batch.

    Attributes:
        shares: (B, C, T + 1) of each cell's area, the ground first.
        things: (B, T + 1, 3) shape, colour and texture as numbers, 0 for the ground.
        centres: (B, T + 1, 3) x, y and radius in [0, 1].
        figure: (B, C, F) bool, points on an object.
        letters: (B, C) 0, or 1 + the letter.
    """

    shares: torch.Tensor
    things: torch.Tensor
    centres: torch.Tensor
    figure: torch.Tensor
    letters: torch.Tensor


def label(picture: Marked) -> Labels:
    """The labels of one picture, without a batch dimension."""
    things = torch.zeros(THINGS + 1, len(ATTRIBUTES), dtype=torch.uint8)
    centres = torch.ones(THINGS + 1, 3)
    for i, thing in enumerate(picture.scene.things):
        centres[i + 1] = torch.tensor([thing.x, thing.y, thing.radius])
        for k, (name, words) in enumerate(ATTRIBUTES.items()):
            things[i + 1, k] = 1 + words.index(getattr(thing, name))
    return Labels(
        torch.from_numpy(cell_shares(picture.instance_HW)).half(),
        things,
        centres,
        torch.from_numpy(cell_figure(picture.instance_HW)),
        torch.from_numpy(cell_letters(picture.marks, picture.image.width)).to(torch.uint8),
    )


class Gallery:
    """Pictures with labels, painted and preprocessed once, drawn in shuffled passes."""

    def __init__(self, nano: Nano, split: str, n: int):
        """Paint and preprocess, 64 pictures at a time."""
        self.n = n
        pixels: list[dict[str, torch.Tensor]] = []
        labels: list[Labels] = []
        for start in range(0, n, 64):
            drawn = [draw_picture(split, i) for i in range(start, min(start + 64, n))]
            found = nano.processor.image_processor([d.image for d in drawn], return_tensors="pt")
            pixels.append(nano.crop({k: _small(v) for k, v in found.items()}))
            labels += [label(d) for d in drawn]
        self.pixels = {name: torch.cat([p[name] for p in pixels]) for name in pixels[0]}
        self.labels = Labels(*(torch.stack(x) for x in zip(*labels, strict=True)))

    def batch(self, step: int, size: int) -> tuple[dict[str, torch.Tensor], Labels]:
        """Pixels and labels of a step; every pass has another order."""
        passes = self.n // size
        order = np.random.default_rng([step // passes, 1]).permutation(self.n)
        return self.take(order[(step % passes) * size :][:size])

    def take(self, chosen: np.ndarray) -> tuple[dict[str, torch.Tensor], Labels]:
        """Pixels and labels of some pictures."""
        rows = len(self.pixels["pixel_values"]) // self.n  # Qwen: patches of a picture
        at = (chosen[:, None] * rows + np.arange(rows)).reshape(-1)
        take = {"pixel_values": at, "image_grid_thw": chosen}
        pixels = {name: _full(kept[take[name]]) for name, kept in self.pixels.items()}
        return pixels, Labels(*(x[chosen] for x in self.labels))


def _small(x: torch.Tensor) -> torch.Tensor:
    """Half precision: three digits are more than eight bits of colour."""
    return x.half() if x.is_floating_point() else x


def _full(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.is_floating_point() else x


class Heads(nn.Module):
    """One linear layer a label, on normalised features."""

    def __init__(self, width: int):
        """Of features (..., width)."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        sizes = {**CLASSES, "letter": len(LETTERS) + 1, "figure": FINE**2, "centre": 2}
        self.read = nn.ModuleDict({name: nn.Linear(width, k) for name, k in sizes.items()})

    def forward(self, features_BCD: torch.Tensor) -> dict[str, torch.Tensor]:
        """Log-probabilities (B, C, K) of every label; of points the logits, of centres offsets."""
        x = self.norm(features_BCD.float())
        said = {name: read(x).float() for name, read in self.read.items()}
        plain = ("figure", "centre")
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
    return total + 2 * figure + centre + letter


def offset_error(said_BC2: torch.Tensor, truth: Labels) -> torch.Tensor:
    """Mean distance, in radii, of the centre of a cell's object from where it is said to lie."""
    side = SIDE // PATCH
    grid = (torch.arange(side) + 0.5) / side
    cells_C2 = torch.stack([grid.repeat(side), grid.repeat_interleave(side)], -1)
    share_BC, mostly_BC = truth.shares.float().max(-1)
    centres_BC3 = truth.centres.gather(1, mostly_BC[..., None].expand(-1, -1, 3))
    offset_BC2 = (centres_BC3[..., :2] - cells_C2) / centres_BC3[..., 2:]
    on_BC = ((mostly_BC > 0) & (share_BC > 0.3)).float()
    error_BC = (said_BC2 - offset_BC2).abs().sum(-1)
    return (error_BC * on_BC).sum() / on_BC.sum().clamp(min=1)


class DenseGrade(NamedTuple):
    """Held-out accuracies in [0, 1], by cell."""

    shape: float  # of cells that mostly show an object
    colour: float
    texture: float
    figure: float  # of points, on an object or not
    letter: float  # of cells that hold a letter: the right one said
    no_letter: float  # of cells that hold none: none said
    centre: float  # not an accuracy: mean error in radii


@torch.inference_mode()
def examine_dense(nano: Nano, heads: Heads, gallery: Gallery) -> DenseGrade:
    """Accuracies over a held-out gallery."""
    right: dict[str, list[torch.Tensor]] = {name: [] for name in DenseGrade._fields}
    for start in range(0, gallery.n, 64):
        pixels, truth = gallery.take(np.arange(start, min(start + 64, gallery.n)))
        found = heads(nano.see(nano.model, pixels))
        right["centre"].append(offset_error(found["centre"], truth)[None])
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
