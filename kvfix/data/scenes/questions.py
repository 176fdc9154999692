"""Multiple-choice perception questions on scenes: one function for each skill of BLINK.

A nano is never trained on these before a repair. Every right answer follows from the scene alone,
right options sit at every letter equally often, and marked points are kept beside the drawn markers
so that a readout never has to guess where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from kvfix.data.scenes.paint import (
    SIZE,
    Thing,
    backdrop,
    generator,
    parts_xy,
    pick,
    place_all,
    render,
    sample_scene,
    sample_thing,
)
from kvfix.data.scenes.shapes import COLOURS, HOLES, SHAPES, STYLES, TEXTURES, mark
from kvfix.data.scenes.talk import NUMBERS
from kvfix.data.units import Question

Marks = list[tuple[str, float, float]]


class Draft(NamedTuple):
    """A question before it has a name."""

    images: tuple[Image.Image, ...]
    question: str
    choices: tuple[str, ...]
    answer: int
    points: tuple[Marks, ...] = ()


def _at(label: str, xy: np.ndarray) -> tuple[str, float, float]:
    return label, float(xy[0]), float(xy[1])


def _shuffled(rng: np.random.Generator, right: object, wrong: list) -> tuple[list, int]:
    """Put the right item at a random place among the wrong ones."""
    answer = int(rng.integers(len(wrong) + 1))
    items = list(wrong)
    items.insert(answer, right)
    return items, answer


def relative_depth(rng: np.random.Generator) -> Draft:
    """Two overlapping objects, marked: which is in front?"""
    far = sample_thing(rng, radius=(0.16, 0.22))
    near = sample_thing(rng, radius=(0.16, 0.22))
    turn = rng.uniform(0, 2 * np.pi)
    gap = (far.radius + near.radius) * 0.62
    cx, cy = rng.uniform(0.42, 0.58, 2)
    far = replace(far, x=cx - gap / 2 * np.cos(turn), y=cy - gap / 2 * np.sin(turn))
    near = replace(near, x=cx + gap / 2 * np.cos(turn), y=cy + gap / 2 * np.sin(turn))
    scene = backdrop(rng, (far, near))
    picture = render(scene)
    text = "Two things are marked in the image. Which one is closer to the viewer, in front?"
    return _two_marked(rng, picture.image, near, far, text)


def _two_marked(
    rng: np.random.Generator, image: Image.Image, right: Thing, wrong: Thing, text: str
) -> Draft:
    """Ask which of two objects, marked A and B, is the right one."""
    things, answer = _shuffled(rng, right, [wrong])
    marks: Marks = [
        (label, *_spot(thing, wrong if thing is right else right))
        for label, thing in zip("AB", things, strict=True)
    ]
    return Draft((mark(image, marks),), text, ("A", "B"), answer, (marks,))


def _spot(thing: Thing, other: Thing) -> tuple[float, float]:
    """A pixel on the object: its centre, or the part of a ring farthest from the other."""
    if thing.shape not in HOLES:
        return float(thing.x * SIZE - 0.5), float(thing.y * SIZE - 0.5)
    parts = parts_xy(thing)
    x, y = max(parts.tolist(), key=lambda p: np.hypot(p[0] - other.x * SIZE, p[1] - other.y * SIZE))
    return x, y


def counting(rng: np.random.Generator) -> Draft:
    """How many objects of one shape: one to four, equally often, among up to two others."""
    shape = pick(rng, SHAPES)
    n = int(rng.integers(1, 5))
    while True:
        same = [sample_thing(rng, shape=shape, radius=(0.1, 0.14)) for _ in range(n)]
        rest = [
            sample_thing(rng, radius=(0.1, 0.14), but_shapes=[shape])
            for _ in range(int(rng.integers(3)))
        ]
        things = place_all(rng, [*same, *rest], allowed=0.05)
        if sum(t.shape == shape for t in things) == n:
            break
    scene = backdrop(rng, sorted(things, key=lambda t: t.radius))
    wrong = [w for w in NUMBERS[1:5] if w != NUMBERS[n]]
    rng.shuffle(wrong)
    options, answer = _shuffled(rng, NUMBERS[n], wrong)
    text = f"How many of shape {shape} are in the image?"
    return Draft((render(scene).image,), text, tuple(options), answer)


def spatial_relation(rng: np.random.Generator) -> Draft:
    """Is the A left of / right of / above / below the B?"""
    shapes = list(SHAPES)
    rng.shuffle(shapes)
    while True:
        pair = [sample_thing(rng, shape=s, radius=(0.12, 0.18)) for s in shapes[:2]]
        things = place_all(rng, pair, allowed=0.0)
        if len(things) == 2 and max(_offset(things)) > 0.25:
            break
    a, b = things
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > abs(dy):
        true, false = ("left of", "right of") if dx < 0 else ("right of", "left of")
    else:
        true, false = ("above", "below") if dy < 0 else ("below", "above")
    yes = rng.random() < 0.5
    text = f"Is the {a.shape} {true if yes else false} the {b.shape}?"
    scene = backdrop(rng, things)
    answer = 0 if yes else 1
    return Draft((render(scene).image,), text, ("yes", "no"), answer)


def _offset(things: tuple[Thing, ...]) -> tuple[float, float]:
    return abs(things[0].x - things[1].x), abs(things[0].y - things[1].y)


def object_localization(rng: np.random.Generator) -> Draft:
    """Which of two marked centres lies on the named object?"""
    while True:
        scene = sample_scene(rng, count=(2, 3), radius=(0.13, 0.2), allowed=0.0)
        names = [t.shape for t in scene.things]
        if len(scene.things) >= 2 and len(set(names)) == len(names):
            break
    picture = render(scene)
    order = rng.permutation(len(scene.things))
    right, wrong = scene.things[order[0]], scene.things[order[1]]
    text = f"Which marked point lies on the {right.shape}?"
    return _two_marked(rng, picture.image, right, wrong, text)


def jigsaw(rng: np.random.Generator) -> Draft:
    """The lower right corner is cut out: which piece belongs there?"""
    scene = sample_scene(rng, count=(2, 4), radius=(0.16, 0.24), allowed=0.3)
    things = (*scene.things, replace(sample_thing(rng, radius=(0.2, 0.26)), x=0.6, y=0.62))
    image = render(replace(scene, things=things)).image
    half = SIZE // 2
    corner = (half, half, SIZE, SIZE)
    right = image.crop(corner)
    wrong = image.crop((0, 0, half, half))
    hollow = image.copy()
    hollow.paste((0, 0, 0), corner)
    text = (
        "The first image misses its bottom right corner. Is the second or the third image the "
        "missing piece?"
    )
    return _second_or_third(rng, hollow, _framed(right), _framed(wrong), text)


def _second_or_third(
    rng: np.random.Generator,
    first: Image.Image,
    right: Image.Image,
    wrong: Image.Image,
    text: str,
) -> Draft:
    """Ask which of two further images is the right one."""
    images, answer = _shuffled(rng, right, [wrong])
    return Draft((first, *images), text, ("the second image", "the third image"), answer)


def _framed(piece: Image.Image) -> Image.Image:
    """A piece at its true scale, on black, where it would belong."""
    frame = Image.new("RGB", (SIZE, SIZE))
    frame.paste(piece, (SIZE // 2, SIZE // 2))
    return frame


def art_style(rng: np.random.Generator) -> Draft:
    """Which of two images is rendered in the style of the first?"""
    style = pick(rng, STYLES)
    other = pick(rng, STYLES, but=[style])
    first, right, wrong = (render(sample_scene(rng, style=s)).image for s in (style, style, other))
    text = "Is the second or the third image in the same art style as the first image?"
    return _second_or_third(rng, first, right, wrong, text)


def visual_similarity(rng: np.random.Generator) -> Draft:
    """Which of two images is most similar to the first: the same objects, moved, or others?"""
    scene = sample_scene(rng, count=(2, 3), radius=(0.14, 0.2), style="flat", allowed=0.1)
    moved = [replace(t, x=_jitter(rng, t.x, t), y=_jitter(rng, t.y, t)) for t in scene.things]
    similar = replace(scene, things=tuple(moved), seed=int(rng.integers(2**31)))
    changed = []
    for t in scene.things:
        colour = pick(rng, tuple(COLOURS), but=[t.colour])
        texture = pick(rng, TEXTURES, but=[t.texture])
        changed.append(replace(t, shape=pick(rng, SHAPES), colour=colour, texture=texture))
    other = replace(
        scene,
        seed=int(rng.integers(2**31)),
        things=tuple(replace(t, x=_jitter(rng, t.x, t), y=_jitter(rng, t.y, t)) for t in changed),
    )
    text = "Is the second or the third image more similar to the first image?"
    first, right, wrong = (render(s).image for s in (scene, similar, other))
    return _second_or_third(rng, first, right, wrong, text)


def _jitter(rng: np.random.Generator, centre: float, thing: Thing) -> float:
    r = thing.radius
    return float(np.clip(centre + rng.uniform(-0.1, 0.1), r, 1 - r))


def visual_correspondence(rng: np.random.Generator) -> Draft:
    """A point of one view and four candidates in a warped second view."""
    scene = sample_scene(rng, count=(3, 4), radius=(0.13, 0.2))
    image = render(scene).image
    warp = random_warp(rng)
    view = warp_image(image, warp)
    while True:
        xy = rng.uniform(0.15, 0.85, (4, 2)) * SIZE
        gaps = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + np.eye(4) * SIZE
        there = warp_points(xy, warp)
        inside = ((there > 0.08 * SIZE) & (there < 0.92 * SIZE)).all()
        if gaps.min() > 0.25 * SIZE and inside:
            break
    order = rng.permutation(4)
    answer = int(np.nonzero(order == 0)[0][0])
    ref: Marks = [_at("R", xy[0])]
    marks: Marks = [_at(label, there[k]) for label, k in zip("ABCD", order, strict=True)]
    text = (
        "A point R is marked in the first image. The second image shows the same scene from "
        "another view. Which marked point is the same point?"
    )
    images = (mark(image, ref), mark(view, marks))
    return Draft(images, text, tuple("ABCD"), answer, (ref, marks))


def semantic_correspondence(rng: np.random.Generator) -> Draft:
    """A part of one object and the parts of another object of the same shape."""
    shape = pick(rng, [s for s in SHAPES if s not in ("ring", "circle")])
    a, b = (replace(sample_thing(rng, shape=shape, radius=(0.3, 0.4)), x=0.5, y=0.5) for _ in "ab")
    source, target = (render(backdrop(rng, (t,), style="flat")).image for t in (a, b))
    parts = rng.permutation(len(parts_xy(a)))[:4]
    order = rng.permutation(len(parts))
    answer = int(np.nonzero(order == 0)[0][0])
    ref: Marks = [_at("R", parts_xy(a)[parts[0]])]
    marks: Marks = [_at(chr(65 + i), parts_xy(b)[parts[k]]) for i, k in enumerate(order)]
    text = (
        f"A point R is marked on the {shape} in the first image. Which marked point of the second "
        "image is the same part?"
    )
    images = (mark(source, ref), mark(target, marks))
    return Draft(images, text, tuple(m[0] for m in marks), answer, (ref, marks))


def random_warp(rng: np.random.Generator) -> np.ndarray:
    """A homography (3, 3), source -> view: each corner moves by up to 14 % of the side."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float) * SIZE
    moved = corners + rng.uniform(-0.14, 0.14, (4, 2)) * SIZE
    rows = []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    h = np.linalg.solve(np.array(rows), moved.reshape(-1))
    return np.append(h, 1.0).reshape(3, 3)


def warp_points(xy: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """Where points (N, 2) of the source lie in the view."""
    uvw = np.c_[xy, np.ones(len(xy))] @ warp.T
    return uvw[:, :2] / uvw[:, 2:]


def warp_image(image: Image.Image, warp: np.ndarray) -> Image.Image:
    """The view: pixel p of the source appears at `warp_points(p)`; grey where nothing was seen."""
    # PIL maps view pixels back to the source, with pixel centres at half-integers.
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    back = shift @ np.linalg.inv(warp) @ np.linalg.inv(shift)
    back = (back / back[2, 2]).reshape(-1)[:8]
    return image.transform(
        image.size,
        Image.Transform.PERSPECTIVE,
        tuple(back),
        Image.Resampling.BILINEAR,
        fillcolor=(96, 96, 96),
    )


SKILLS: dict[str, Callable[[np.random.Generator], Draft]] = {
    "Art_Style": art_style,
    "Counting": counting,
    "Jigsaw": jigsaw,
    "Object_Localization": object_localization,
    "Relative_Depth": relative_depth,
    "Semantic_Correspondence": semantic_correspondence,
    "Spatial_Relation": spatial_relation,
    "Visual_Correspondence": visual_correspondence,
    "Visual_Similarity": visual_similarity,
}


def scene_question(split: str, skill: str, index: int) -> Question:
    """Question `index` of a skill in a split."""
    if skill not in SKILLS:
        raise ValueError(f"skill: expected one of {', '.join(SKILLS)}, found {skill!r}")
    draft = SKILLS[skill](generator(split, index, skill))
    name = f"{split}_{skill}_{index}"
    points = tuple(tuple(m) for m in draft.points)
    return Question(
        name, name, skill, draft.images, draft.question, draft.choices, draft.answer, points
    )
