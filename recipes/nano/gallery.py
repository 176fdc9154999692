"""Pictures with a label for every cell, painted once; letters are drawn on them anew every time.

A cell's labels are the shape, colour and texture of what it shows (or ground), which of its points
belong to an object, how far away that object's centre lies, and the letter that is drawn in it.

Shapes: B pictures, C cells, T things of a picture (0 is ground), F points of a cell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from models import PATCH, SIDE, Nano
from PIL import Image

from kvfix.data.scenes.paint import SIZE, Scene, generator, render, sample_scene
from kvfix.data.scenes.shapes import COLOURS, GLYPHS, MARK_RGB, SHAPES, TEXTURES, mark

LETTERS = tuple(GLYPHS)
THINGS = 4  # most objects of a picture
MARKS = 9  # most letters on a picture
RING = 0.045  # radius of a mark's circle, of the picture's side
NEAR = 0.16  # of the side: all of a mark lies within this distance
LEAST_INK = 0.25  # share of a letter's pixels that makes a cell hold the letter
FINE = 5  # points a side of a cell
APART = 0.15  # least distance of two marks
ATTRIBUTES = {"shape": SHAPES, "colour": tuple(COLOURS), "texture": TEXTURES}
CELL_SIDE = SIDE // PATCH  # cells a side
Marks = list[tuple[str, float, float]]  # letter, x and y in pixels


class Labels(NamedTuple):
    """Labels of a batch.

    Attributes:
        shares: (B, C, T + 1) of each cell's area, the ground first.
        things: (B, T + 1, 3) shape, colour and texture as numbers, 0 for the ground.
        centres: (B, T + 1, 3) x, y and radius in [0, 1].
        figure: (B, C, F) bool, points on an object.
        letters: (B, C) 0, or 1 + the letter.
        inks: (B, C, 2) from the cell's centre to the middle of its letter, in cells.
    """

    shares: torch.Tensor
    things: torch.Tensor
    centres: torch.Tensor
    figure: torch.Tensor
    letters: torch.Tensor
    inks: torch.Tensor


def draw_scene(split: str, index: int) -> Scene:
    """One to four objects, small or large."""
    rng = generator(split, index, "dense")
    largest = (0.2, 0.28, 0.4)[int(rng.integers(3))]
    return sample_scene(rng, count=(1, THINGS), radius=(0.1, largest), allowed=0.3)


def scatter_marks(rng: np.random.Generator, centres_T3: torch.Tensor) -> Marks:
    """Letters in any order, also twice, on objects and anywhere else; the first centre is none."""
    things = [c for c in centres_T3[1:, :2].tolist() if c != [1.0, 1.0]]
    places: list[tuple[float, float]] = []
    marks: Marks = []
    for _ in range(int(rng.integers(MARKS + 1))):
        x, y = rng.uniform(0.04, 0.96, 2)
        if things and rng.random() < 0.35:
            x, y = np.array(things[int(rng.integers(len(things)))]) + rng.normal(0, 0.03, 2)
        if all(np.hypot(x - a, y - b) > APART for a, b in places):
            places.append((x, y))
            letter = LETTERS[int(rng.integers(len(LETTERS)))]
            marks.append((letter, float(x) * SIZE, float(y) * SIZE))
    return marks


def _per_cell(map_HW: np.ndarray) -> np.ndarray:
    """(C,) sums over the pixels of each cell."""
    first = [-(-i * map_HW.shape[0] // CELL_SIDE) for i in range(CELL_SIDE)]
    rows = np.add.reduceat(map_HW.astype(np.float32), first, axis=0)
    return np.add.reduceat(rows, first, axis=1).reshape(-1)


def cell_shares(instance_HW: np.ndarray) -> np.ndarray:
    """(C, T) how much of each cell shows the ground, the first object, the second, ..."""
    of = [_per_cell(instance_HW == i) for i in range(THINGS + 1)]
    return np.stack(of, axis=-1) / _per_cell(np.ones(instance_HW.shape))[:, None]


def cell_figure(instance_HW: np.ndarray) -> np.ndarray:
    """(C, F) bool: the points of each cell that lie on an object, a fine grid row by row."""
    fine = CELL_SIDE * FINE
    at = (2 * np.arange(fine) + 1) * instance_HW.shape[0] // (2 * fine)
    on = instance_HW[at[:, None], at[None]] > 0
    return on.reshape(CELL_SIDE, FINE, CELL_SIDE, FINE).swapaxes(1, 2).reshape(-1, FINE**2)


class Ink(NamedTuple):
    """Of one picture: (C,) 0 or 1 + the letter, (C, 2) way to the letter's middle in cells."""

    letters: np.ndarray
    ways: np.ndarray


def cell_letters(marks: Marks, size: int = SIZE) -> Ink:
    """Which letter is drawn in a cell, or has its circle centred there.

    A letter counts in every cell that holds a good part of its ink.
    """
    letters, ways = np.zeros(CELL_SIDE**2, np.int64), np.zeros((CELL_SIDE**2, 2), np.float32)
    blank = Image.new("RGB", (size, size))
    for letter, cx, cy in marks:
        reach = int(NEAR * size)
        x0, y0 = max(int(cx) - reach, 0), max(int(cy) - reach, 0)
        drawn = mark(blank, [(letter, cx, cy)]).crop((x0, y0, x0 + 2 * reach, y0 + 2 * reach))
        y, x = np.nonzero((np.asarray(drawn) == MARK_RGB).all(-1))
        y, x = y + y0, x + x0
        off = np.hypot(x - cx, y - cy) > RING * size + 0.5
        y, x = y[off], x[off]
        ink_C = np.bincount(
            y * CELL_SIDE // size * CELL_SIDE + x * CELL_SIDE // size, minlength=CELL_SIDE**2
        )
        holds = ink_C >= LEAST_INK * len(x)
        row, column = (int(np.clip(c * CELL_SIDE / size, 0, CELL_SIDE - 1)) for c in (cy, cx))
        holds[row * CELL_SIDE + column] = True
        cells = np.nonzero(holds)[0]
        letters[cells] = 1 + LETTERS.index(letter)
        middle = (np.array([x.mean(), y.mean()]) + 0.5) * CELL_SIDE / size
        ways[cells] = middle - np.stack([cells % CELL_SIDE, cells // CELL_SIDE], -1) - 0.5
    return Ink(letters, ways)


def label(scene: Scene, instance_HW: np.ndarray) -> Labels:
    """The labels of one picture without letters, and without a batch dimension."""
    things = torch.zeros(THINGS + 1, len(ATTRIBUTES), dtype=torch.uint8)
    centres = torch.ones(THINGS + 1, 3)
    for i, thing in enumerate(scene.things):
        centres[i + 1] = torch.tensor([thing.x, thing.y, thing.radius])
        for k, (name, words) in enumerate(ATTRIBUTES.items()):
            things[i + 1, k] = 1 + words.index(getattr(thing, name))
    return Labels(
        torch.from_numpy(cell_shares(instance_HW)).half(),
        things,
        centres,
        torch.from_numpy(cell_figure(instance_HW)),
        torch.zeros(0),
        torch.zeros(0),
    )


class Gallery:
    """Pictures with labels, drawn in shuffled passes."""

    def __init__(self, split: str, n: int):
        """Paint `n` pictures without letters."""
        self.n = n
        self.images = torch.zeros(n, SIZE, SIZE, 3, dtype=torch.uint8)
        labels = []
        for i in range(n):
            scene = draw_scene(split, i)
            picture = render(scene)
            self.images[i] = torch.from_numpy(np.array(picture.image))
            labels.append(label(scene, picture.instance_HW))
        self.labels = Labels(*(torch.stack(x) for x in zip(*labels, strict=True)))

    def batch(self, nano: Nano, step: int, size: int) -> tuple[dict[str, torch.Tensor], Labels]:
        """Pixels and labels of a step; every pass has another order and other letters."""
        passes = self.n // size
        order = np.random.default_rng([step // passes, 1]).permutation(self.n)
        return self.take(nano, order[(step % passes) * size :][:size], seed=step)

    def take(
        self, nano: Nano, chosen: np.ndarray, *, seed: int
    ) -> tuple[dict[str, torch.Tensor], Labels]:
        """Pixels and labels of some pictures; the letters follow from the seed."""
        rng = np.random.default_rng([seed, 2])
        kept = {name: getattr(self.labels, name)[chosen] for name in Labels._fields[:4]}
        images, inks = [], []
        for k, image_HW3 in enumerate(self.images[chosen].numpy()):
            marks = scatter_marks(rng, kept["centres"][k])
            images.append(mark(Image.fromarray(image_HW3), marks))
            inks.append(cell_letters(marks))
        pixels = nano.crop(dict(nano.processor.image_processor(images, return_tensors="pt")))
        letters = torch.from_numpy(np.stack([ink.letters for ink in inks]))
        ways = torch.from_numpy(np.stack([ink.ways for ink in inks]))
        return pixels, Labels(**kept, letters=letters, inks=ways)
