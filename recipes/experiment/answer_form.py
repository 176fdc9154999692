"""Multiple-choice questions that their own text answers: they teach the form of an answer alone.

A model that never writes an option's letter seems blind whatever it sees. How much of a recovery is
this form is measured by an arm of `run.py` that learns from these lines and no image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

KINDS = {
    "an animal": "dog cat horse cow sheep bird bear zebra snake lion goat",
    "a colour": "red green blue yellow white black purple brown grey pink",
    "a food": "bread cheese apple rice soup cake egg pear bean corn pie salad",
    "a vehicle": "car bus train truck boat bicycle plane tram van ship cart",
    "a piece of furniture": "chair table bed sofa desk shelf bench stool wardrobe",
}
ASKED = "Select from the following choices."


def format_lines(n: int) -> list[dict[str, Any]]:
    """`n` conversations without an image, as training data (`kvfix.data.training`).

    Two to four options, as in perception benchmarks; the right one is at each of them alike.
    """
    rng = np.random.default_rng(0)
    return [_line(i, rng) for i in range(n)]


def _line(number: int, rng: np.random.Generator) -> dict[str, Any]:
    kinds = list(KINDS)
    kind = kinds[int(rng.integers(len(kinds)))]
    others = [word for other in kinds if other != kind for word in KINDS[other].split()]
    n_options = int(rng.integers(2, 5))
    options = [str(word) for word in rng.choice(others, n_options - 1, replace=False)]
    right = int(rng.integers(n_options))
    options.insert(right, str(rng.choice(KINDS[kind].split())))
    letters = [f"({chr(ord('A') + i)})" for i in range(n_options)]
    shown = "\n".join(f"{a} {b}" for a, b in zip(letters, options, strict=True))
    return {
        "id": f"format_{number}",
        "sub_task": "Format",
        "images": [],
        "messages": [
            {"role": "user", "content": f"Which word names {kind}?\n{ASKED}\n{shown}"},
            {"role": "assistant", "content": letters[right]},
        ],
    }
