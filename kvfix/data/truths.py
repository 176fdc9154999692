"""The truth of a benchmark's units without their photos: what predictions made elsewhere are scored
on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvfix.data.units import UnitSet

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Truths(Generic[T_co]):
    """Units by id, and what a prediction for each of them is compared with.

    Args:
        units: ids, digest and cluster of the set; its own `load` would read photos too.
        load: index -> truth; raises `BadUnit` for one that cannot be read.
    """

    units: UnitSet
    load: Callable[[int], T_co]
