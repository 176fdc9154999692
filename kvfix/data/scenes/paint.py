"""Procedural scenes: textured shapes on textured grounds, and all that can be asked of them.

A `Scene` is a description in unit coordinates ([0, 1], y down); `render` paints it at any size with
its exact instance map. Objects later in the list are nearer: they are drawn over the others, larger
and less hazy. Everything is a function of a seed, and the splits draw from disjoint seed ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from kvfix.data.scenes.shapes import (
    COLOURS,
    GROUNDS,
    PARTS,
    SHAPES,
    STYLES,
    TEXTURES,
    paint_ground,
    placed,
    restyle,
    silhouette,
    weave,
)

SIZE = 160  # pixels of each side, unless asked otherwise
VERSION = 1  # part of every fingerprint: raise it when the same seed paints another picture
SPLITS = {"train": (0, 2**40), "val": (2**40, 2**41), "test": (2**41, 2**42)}  # seed ranges
MAX_ANGLE = 25.0  # degrees; keeps "top", "left" parts nameable


@dataclass(frozen=True)
class Thing:
    """One object: what it is, and where, in unit coordinates."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float  # degrees, clockwise

    @property
    def name(self) -> str:
        """Full description without article: `red striped star`."""
        return f"{self.colour} {self.texture} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects from far to near on a ground, in a rendering style."""

    things: tuple[Thing, ...]
    ground: str
    tone: tuple[float, float, float]  # RGB of the ground, [0, 255]
    style: str
    seed: int  # gives the grain of ground and style


class Rendered(NamedTuple):
    """A painted scene: RGB image and instance map (0 ground, i + 1 what shows of thing i)."""

    image: Image.Image
    instance_HW: np.ndarray


def seed_of(split: str, index: int) -> int:
    """The seed of scene `index` of a split."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    low, high = SPLITS[split]
    if not 0 <= index < high - low:
        raise ValueError(
            f"index: expected 0 <= index < {high - low} in split {split}, found {index}"
        )
    return low + index


def generator(split: str, index: int, stream: str) -> np.random.Generator:
    """The random stream of one purpose (`stream`) at one index of a split."""
    return np.random.default_rng([seed_of(split, index), *stream.encode()])


def pick(rng: np.random.Generator, options: Sequence[str], *, but: Sequence[str] = ()) -> str:
    """One of the options at random, none of `but`."""
    left = [o for o in options if o not in but]
    return left[int(rng.integers(len(left)))]


def sample_thing(
    rng: np.random.Generator,
    *,
    radius: tuple[float, float] = (0.12, 0.2),
    shape: str | None = None,
    but_shapes: Sequence[str] = (),
) -> Thing:
    """A random object that lies inside the unit square."""
    r = float(rng.uniform(*radius))
    x, y = rng.uniform(r, 1 - r, 2)
    return Thing(
        shape or pick(rng, SHAPES, but=but_shapes),
        pick(rng, tuple(COLOURS)),
        pick(rng, TEXTURES),
        float(x),
        float(y),
        r,
        float(rng.uniform(-MAX_ANGLE, MAX_ANGLE)),
    )


def overlap(a: Thing, b: Thing) -> float:
    """How deep two objects' discs intersect: 0 apart, 1 when centres coincide."""
    gap = np.hypot(a.x - b.x, a.y - b.y) / (a.radius + b.radius)
    return float(max(0.0, 1 - gap))


def place_all(
    rng: np.random.Generator, things: Sequence[Thing], *, allowed: float
) -> tuple[Thing, ...]:
    """Move objects until overlaps are within `allowed`; drop what finds no place."""
    done: list[Thing] = []
    for thing in things:
        for _ in range(40):
            if all(overlap(thing, other) <= allowed for other in done):
                done.append(thing)
                break
            r = thing.radius
            x, y = rng.uniform(r, 1 - r, 2)
            thing = replace(thing, x=float(x), y=float(y))
    return tuple(done)


def backdrop(
    rng: np.random.Generator, things: Sequence[Thing], *, style: str | None = None
) -> Scene:
    """Put objects on a random muted ground; the style is mostly flat unless given."""
    if style is None:
        style = "flat" if rng.random() < 0.6 else pick(rng, STYLES)
    grey = rng.uniform(70, 170)
    red, green, blue = (float(t) for t in grey + rng.uniform(-25, 25, 3))
    seed = int(rng.integers(2**31))
    return Scene(tuple(things), pick(rng, GROUNDS), (red, green, blue), style, seed)


def sample_scene(
    rng: np.random.Generator,
    *,
    count: tuple[int, int] = (2, 4),
    radius: tuple[float, float] = (0.12, 0.2),
    style: str | None = None,
    allowed: float = 0.2,
) -> Scene:
    """A random scene of `count[0]`..`count[1]` objects, far to near by size."""
    n = int(rng.integers(count[0], count[1] + 1))
    things = [sample_thing(rng, radius=radius) for _ in range(n)]
    things = list(place_all(rng, things, allowed=allowed))
    return backdrop(rng, sorted(things, key=lambda t: t.radius), style=style)


def _paint_thing(
    canvas: np.ndarray, thing: Thing, tone: np.ndarray, haze: float, size: int
) -> np.ndarray:
    """Paint one object in place; returns its silhouette."""
    cx, cy, r = thing.x * size - 0.5, thing.y * size - 0.5, thing.radius * size
    mask = silhouette(thing.shape, (cx, cy), r, thing.angle, size)
    pad = int(r * 1.2) + 1
    y0, y1 = max(int(cy) - pad, 0), min(int(cy) + pad + 1, size)
    x0, x1 = max(int(cx) - pad, 0), min(int(cx) + pad + 1, size)
    y, x = np.arange(y0, y1)[:, None], np.arange(x0, x1)
    a = np.deg2rad(thing.angle)
    u = (np.cos(a) * (x - cx) + np.sin(a) * (y - cy)) / r
    v = (-np.sin(a) * (x - cx) + np.cos(a) * (y - cy)) / r
    inside = mask[y0:y1, x0:x1]
    shades = np.array([[1.0], [0.5]])
    tones = np.asarray(COLOURS[thing.colour]) * shades * (1 - haze) + tone * haze
    canvas[y0:y1, x0:x1][inside] = tones[weave(thing.texture, u, v)[inside].astype(np.intp)]
    return mask


def render(scene: Scene, size: int = SIZE) -> Rendered:
    """Paint a scene at `size` x `size` pixels."""
    rng = np.random.default_rng(scene.seed)
    tone = np.asarray(scene.tone)
    canvas = paint_ground(scene.ground, tone, size, rng)
    instance_HW = np.zeros((size, size), np.uint8)
    n = len(scene.things)
    for i, thing in enumerate(scene.things):
        haze = 0.3 * (n - 1 - i) / max(n - 1, 1)  # the farthest fades most into the ground
        np.putmask(instance_HW, _paint_thing(canvas, thing, tone, haze, size), i + 1)
    picture = restyle(canvas.astype(np.uint8), scene.style, rng)
    return Rendered(Image.fromarray(picture), instance_HW)


def class_mask(scene: Scene, instance_HW: np.ndarray, shape: str) -> np.ndarray:
    """The visible pixels of every object of a shape, uint8 0/1."""
    wanted = [i + 1 for i, t in enumerate(scene.things) if t.shape == shape]
    return np.isin(instance_HW, wanted).astype(np.uint8)


def parts_xy(thing: Thing) -> np.ndarray:
    """The object's named parts in pixels, (K, 2)."""
    centre = (thing.x * SIZE - 0.5, thing.y * SIZE - 0.5)
    return placed(PARTS[thing.shape], centre, thing.radius * SIZE, thing.angle)


def box_of(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """Bounding box x0, y0, x1, y1 of a mask's pixels, inclusive."""
    ys, xs = np.nonzero(mask_HW)
    if len(xs) == 0:
        raise ValueError("mask: expected at least one pixel set, found none")
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())
