"""What a number in a config may be: said once beside the field, refused by the field's name.

    rate: float = number(1e-3, least=0)

Whatever is said, a float must be finite and an int fit into 32 bits: NaN passes every comparison
that is written as a refusal, and infinity trains nothing.
"""

from __future__ import annotations

import math
from dataclasses import field, fields
from typing import Any, NamedTuple

from kvfix.wording import shown

LARGEST = 2**32 - 1  # the largest int, and the largest seed that NumPy takes
_BOUNDS = "bounds"


class FieldError(ValueError):
    """A field, by its `name`, whose value is refused; `text` says what was expected and found."""

    def __init__(self, name: str, text: str):
        super().__init__(f"{name}: {text}")
        self.name, self.text = name, text


class Bounds(NamedTuple):
    """Where a number must lie; None is no bound."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, x: float) -> bool:
        """Whether a finite number lies in them."""
        return not (
            (self.least is not None and x < self.least)
            or (self.above is not None and x <= self.above)
            or (self.most is not None and x > self.most)
            or (self.below is not None and x >= self.below)
        )

    def words(self) -> str:
        """Words for a message, such as "of 0 or more and below 1"."""
        parts = [
            *([] if self.least is None else [f"of {self.least:g} or more"]),
            *([] if self.above is None else [f"above {self.above:g}"]),
            *([] if self.most is None else [f"of {self.most:g} at most"]),
            *([] if self.below is None else [f"below {self.below:g}"]),
        ]
        return " and ".join(parts)


def number(default: Any, **bounds: float) -> Any:
    """A dataclass field whose value, or each value of whose tuple, must lie in these `Bounds`."""
    return field(default=default, metadata={_BOUNDS: Bounds(**bounds)})


def check_numbers(config: Any) -> None:
    """Look at every number of a dataclass, or raise FieldError; inner ones look at their own."""
    for f in fields(config):
        check_number(config, f.name, getattr(config, f.name))


def check_number(config: Any, name: str, value: Any) -> None:
    """Look at what shall be the value of one field of a dataclass; see `check_numbers`."""
    [bounds] = [f.metadata.get(_BOUNDS) for f in fields(config) if f.name == name]
    for item in value if isinstance(value, tuple) else (value,):
        _check(name, item, bounds)


def _check(name: str, value: Any, bounds: Bounds | None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if bounds is not None:
            raise FieldError(name, f"expected a number, found {shown(value)}")
        return
    kind = "a whole number" if isinstance(value, int) else "a number"
    if isinstance(value, int) and abs(value) > LARGEST:
        raise FieldError(name, f"expected a whole number of 32 bits, found {shown(value)}")
    if not math.isfinite(value):
        raise FieldError(name, f"expected a finite number, found {value}")
    if bounds is not None and not bounds.hold(value):
        raise FieldError(name, f"expected {kind} {bounds.words()}, found {value}")
