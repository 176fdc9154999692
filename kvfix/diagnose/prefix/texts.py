"""The texts that stand before an image: the right name, a wrong one, and a neutral text.

The three texts have one length in tokens, so that they move the image by equally many positions;
what differs between them is what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

CONDITIONS = ("none", "correct", "wrong", "neutral")
TEMPLATE = "Look for: {}."
NEUTRAL_NAME = "thing"
FILLERS = (".", ",", "!", " .", " ,", " the", "\n")  # tried in turn


class NoContrast(ValueError):
    """Units whose names yield no texts to compare; the message says why."""


class Prefixes(NamedTuple):
    """The texts of one unit, all of `tokens` tokens."""

    correct: str
    wrong: str
    neutral: str
    tokens: int

    def text(self, condition: str) -> str | None:
        """The text of a condition; None under `none`."""
        return None if condition == "none" else getattr(self, condition)


def named(unit: Any) -> str | None:
    """What the probe looks for in a unit: the text it is given, or its class."""
    return getattr(unit, "text", None) or getattr(unit, "category", None)


def prefixes(count: Callable[[str], int], correct: str, others: Sequence[str]) -> Prefixes:
    """Texts of one length for a name, in tokens as `count` counts them.

    Of the other names the one closest in length is the wrong one; the shorter texts are then filled
    up at their front. NoContrast: no other name, or no filler that fits in this tokenizer.
    """
    wrong_names = [o for o in dict.fromkeys(others) if o != correct]
    if not wrong_names:
        raise NoContrast(
            f"expected a name other than {correct!r} among the units, found none; take more units"
        )
    length = count(TEMPLATE.format(correct))
    texts = [TEMPLATE.format(n) for n in wrong_names]
    wrong = min(texts, key=lambda t: abs(count(t) - length))
    three = [TEMPLATE.format(correct), wrong, TEMPLATE.format(NEUTRAL_NAME)]
    longest = max(count(t) for t in three)
    filled = [_filled(count, text, longest) for text in three]
    return Prefixes(filled[0], filled[1], filled[2], longest)


def _filled(count: Callable[[str], int], text: str, length: int) -> str:
    missing = length - count(text)
    for filler, space in product(FILLERS, (" ", "")):
        for times in range(missing + 1):
            longer = filler * times + space * (times > 0) + text
            if count(longer) == length:
                return longer
    raise NoContrast(
        f"expected a filler that brings {text!r} from {count(text)} to {length} tokens, found none "
        f"among {FILLERS}"
    )
