"""A loss term: its weight, its schedule, what it needs captured.

Shapes: none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from kvfix.bounds import check_numbers, number
from kvfix.repair.batch import Batch
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import MaskHead, Temperature, TextProjection
from kvfix.repair.terms.mean import Mean

Kind = Literal["constant", "linear", "cosine"]
Head = MaskHead | TextProjection | Temperature


@dataclass(frozen=True)
class Schedule:
    """A factor on a term's weight over optimizer steps.

    Attributes:
        kind: "constant" is 1 throughout; "linear" and "cosine" go from `first` to `last`.
        start: Last step at `first`, 0-based.
        end: First step at `last`.
        first: Factor up to `start`; 0 to 1 warms a term up.
        last: Factor from `end` on; 1 to 0 fades it out.
    """

    kind: Kind = "constant"
    start: int = number(0, least=0)
    end: int = number(0, least=0)
    first: float = number(0.0, least=0)
    last: float = number(1.0, least=0)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_numbers(self)
        if self.kind not in get_args(Kind):
            raise ValueError(f"expected kind {', '.join(get_args(Kind))}, found {self.kind!r}")
        if self.kind == "constant":
            if (self.start, self.end, self.first, self.last) != (0, 0, 0.0, 1.0):
                raise ValueError(
                    "expected a constant schedule without start, end, first and last, found some; "
                    "choose kind linear or cosine"
                )
        elif self.start >= self.end:
            raise ValueError(f"expected start < end, found {self.start} and {self.end}")

    def factor(self, step: int) -> float:
        """At an optimizer step, 0-based."""
        if self.kind == "constant":
            return 1.0
        done = min(max((step - self.start) / (self.end - self.start), 0.0), 1.0)
        if self.kind == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.first + (self.last - self.first) * done


@dataclass(frozen=True)
class Needs:
    """What a step must bring for some terms; `a | b` is what both need.

    Attributes:
        sites: Of `Capture`, in the tuned model.
        layers: Decoder layers of these sites.
        text: Those sites at the last token of each text, too.
        base_sites: Of `Capture`, in the base model; the same layers.
        rows: Logits at text and answer positions.
        base_rows: The base model's there.
        attention: Decoder layers whose queries and keys are read (`QueryKeys`).
        agnostic: The mask of keys to suppress.
    """

    sites: frozenset[str] = frozenset()
    layers: frozenset[int] = frozenset()
    text: bool = False
    base_sites: frozenset[str] = frozenset()
    rows: bool = False
    base_rows: bool = False
    attention: frozenset[int] = frozenset()
    agnostic: bool = False

    def __or__(self, other: Needs) -> Needs:
        """All that either needs."""
        return Needs(**{name: mine | vars(other)[name] for name, mine in vars(self).items()})


@dataclass(frozen=True)
class Term:
    """One loss; a subclass says what it needs and computes it.

    Attributes:
        weight: Of its mean in the total loss; 0 leaves it out.
        schedule: Factor on the weight over the steps.
    """

    weight: float = number(0.0, least=0)
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        """Refuse a negative weight, which would train the opposite, and all else out of bounds."""
        check_numbers(self)

    def weight_at(self, step: int) -> float:
        """Weight at an optimizer step, 0-based."""
        return self.weight * self.schedule.factor(step)

    def idle(self, step: int) -> bool:
        """Whether it is left out of an optimizer step; only terms without a head ever are."""
        return False

    def needs(self) -> Needs:
        """What a step must bring."""
        raise NotImplementedError

    def make_head(self, channels: int, seed: int) -> Head | None:
        """The module that it trains along; None without one.

        Args:
            channels: Of a value: KV heads times channels of a head.
            seed: Of its random start.
        """
        return None

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """What `loss(...).weight` will be, before any forward pass.

        With it a step's mean is the same however its samples are shared out over micro-batches.

        Args:
            batch: A micro-batch.
            keys_SHV: The keys to suppress; None without.
        """
        raise NotImplementedError

    def loss(self, step: Step, head: Head | None) -> Mean:
        """The term on one micro-batch; each rank calls it once a micro-batch, whatever is in it."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerTerm(Term):
    """A term that reads chosen layers.

    Attributes:
        layers: Decoder layers, 0-based; at least one where the weight is not 0.
    """

    layers: tuple[int, ...] = ()

    site: ClassVar[str] = "value"

    def __post_init__(self) -> None:
        """Refuse a weight without layers, and what is no layer."""
        super().__post_init__()
        wrong = [n for n in self.layers if type(n) is not int or n < 0]
        if wrong or len(set(self.layers)) != len(self.layers):
            raise ValueError(
                f"expected layers as different numbers from 0, found {list(self.layers)}"
            )
        if self.weight > 0 and not self.layers:
            raise ValueError(
                f"expected layers for a term of weight {self.weight}, found none; set for instance "
                "layers=[8, 12]"
            )

    def needs(self) -> Needs:
        """Its site at its layers."""
        return Needs(sites=frozenset({self.site}), layers=frozenset(self.layers))


@dataclass(frozen=True)
class Anchor(Term):
    """A term that asks the base model, which is a second forward pass.

    Attributes:
        every: Only in one of so many optimizer steps, with as many times the weight: the mean pull
            is the same, and the passes of the base model are fewer.
    """

    every: int = number(1, least=1)

    def idle(self, step: int) -> bool:
        """Between its steps."""
        return step % self.every != 0

    def weight_at(self, step: int) -> float:
        """Zero between its steps."""
        return 0.0 if self.idle(step) else self.every * super().weight_at(step)


def _given(keys_SHV: Tensor | None) -> Tensor:
    if keys_SHV is None:
        raise ValueError("expected the mask of keys to suppress, found none; diagnose first")
    return keys_SHV
