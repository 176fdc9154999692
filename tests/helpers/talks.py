"""A JSONL file of conversations for trainings of tiny models: text alone, one image, two images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny

HEIGHT, WIDTH = 60, 100  # of every photo


def write_talks(folder: Path, n: int = 12) -> Path:
    """In turn: text alone; an image, two turns, masks of two labels; two images with points; three
    with a multiple-choice question.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [(_text, _one, _two, _choice)[i % 4](folder, i) for i in range(n)]
    file = folder / "talks.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def _text(folder: Path, i: int) -> dict[str, Any]:
    return {"id": f"t{i}", "images": [], "messages": _turns(("Say a number.", f"It is {i}."))}


def _one(folder: Path, i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    masks = [
        {"image": 0, "label": label, "size": [HEIGHT, WIDTH], "counts": runs(box(rng))}
        for label in ("cat", "dog")
    ]
    turns = _turns(("<image>\nWhat is it?", "A cat."), ("And else?", f"Dog {i}."))
    return {"id": f"i{i}", "images": [_photo(folder, i)], "messages": turns, "masks": masks}


def _two(folder: Path, i: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    a_K2, b_K2 = (rng.uniform(0, [WIDTH - 1, HEIGHT - 1], (1 + i % 4, 2)) for _ in "ab")
    points = [
        {"image_a": 0, "image_b": 1, "a": a.tolist(), "b": b.tolist()}
        for a, b in zip(a_K2, b_K2, strict=True)
    ]
    turns = _turns(("<image><image>\nThe same?", "Yes." if i % 2 else "No, it is not."))
    images = [_photo(folder, 10 * i + 1), _photo(folder, 10 * i + 2)]
    return {"id": f"p{i}", "images": images, "messages": turns, "points": points}


def _choice(folder: Path, i: int) -> dict[str, Any]:
    options = "(A) the second image\n(B) the third image"
    turns = _turns((f"<image><image><image>\nWhich is like the first?\n{options}", "(B)"))
    images = [_photo(folder, 10 * i + k) for k in range(3)]
    row = {"id": f"c{i}", "sub_task": "Visual_Similarity", "images": images, "messages": turns}
    return row


def box(rng: np.random.Generator) -> np.ndarray:
    """A rectangle, uint8 (HEIGHT, WIDTH)."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = int(rng.integers(0, 30)), int(rng.integers(0, 50))
    mask[y : y + 30, x : x + 50] = 1
    return mask


def runs(mask_HW: np.ndarray) -> list[int]:
    """COCO run lengths: background first, column by column."""
    flat = mask_HW.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, len(flat)]).tolist()
    return [0, *lengths] if flat[0] else lengths


def _photo(folder: Path, seed: int) -> str:
    name = f"{seed}.png"
    tiny.photo(HEIGHT, WIDTH, seed=seed).save(folder / name)
    return name


def _turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(roles, pair, strict=True)
    ]
