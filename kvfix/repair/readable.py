"""Examples of which one may become unreadable while a training runs: a photo that changed on disk.

No rank may leave the others waiting in the midst of a step. So another example takes its place, and
the trainer is told: it ends where the step ends, on all ranks, with a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvfix.data.training.examples import Example
from kvfix.repair.batch import Batch

_TRIES = 100  # others that are tried in the place of one that cannot be read


@dataclass(frozen=True)
class Replaced:
    """An example in the place of one that cannot be read, and why that cannot."""

    example: Example
    why: str


@dataclass(frozen=True)
class Readable(Sequence[Any]):
    """Examples, or `Replaced` where one cannot be read."""

    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example | Replaced:  # type: ignore[override]
        try:
            return self.examples[index]
        except (ValueError, OSError) as error:
            why = str(error)
        n = len(self.examples)
        for step in range(1, min(n, _TRIES)):
            try:
                return Replaced(self.examples[(index + step) % n], why)
            except (ValueError, OSError):
                continue
        raise ValueError(why)


def collate(make: Callable[[list[Example]], Batch]) -> Callable[[list], dict[str, Any]]:
    """In a dict, which the Trainer and accelerate pass through as it is."""

    def collated(found: list[Example | Replaced]) -> dict[str, Any]:
        lost = [one.why for one in found if isinstance(one, Replaced)]
        examples = [one.example if isinstance(one, Replaced) else one for one in found]
        return {"batch": make(examples), "lost": lost}

    return collated
