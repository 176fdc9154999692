"""A loss term: its weight, what it needs captured, how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvfix.bounds import check_numbers, number
from kvfix.repair.batch import Batch
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head
from kvfix.repair.terms.mean import Mean


@dataclass(frozen=True)
class Needs:
    """What a step must bring for some terms; `a | b` is what both need."""

    sites: frozenset[str] = frozenset()  # of `Capture`, in the tuned model
    layers: frozenset[int] = frozenset()  # decoder layers of these sites
    text: bool = False  # those sites at the last token of each text, too
    base_sites: frozenset[str] = frozenset()  # of `Capture`, in the base model; the same layers
    rows: bool = False  # logits at text and answer positions
    base_rows: bool = False  # the base model's there
    # Decoder layers whose queries and keys are read (`QueryKeys`).
    attention: frozenset[int] = frozenset()
    agnostic: bool = False  # the mask of keys to suppress

    def __or__(self, other: Needs) -> Needs:
        return Needs(**{name: mine | vars(other)[name] for name, mine in vars(self).items()})


@dataclass(frozen=True)
class Term:
    """One loss; a subclass says what it needs and computes it."""

    weight: float = number(0.0, least=0)  # of its mean in the total loss; 0 leaves it out

    def __post_init__(self) -> None:
        """Refuse a negative weight, which would train the opposite, and all else out of bounds."""
        check_numbers(self)

    def weight_at(self, step: int) -> float:
        """Weight at an optimizer step, 0-based."""
        return self.weight

    def idle(self, step: int) -> bool:
        """Whether it is left out of an optimizer step; only terms without a head ever are."""
        return False

    def needs(self) -> Needs:
        """What a step must bring."""
        raise NotImplementedError

    def make_head(self, channels: int, seed: int) -> Head | None:
        """The module that it trains along, on values of so many channels; None without one."""
        return None

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """What `loss(...).weight` will be, before any forward pass.

        With it a step's mean is the same however its samples are shared out over micro-batches.
        """
        raise NotImplementedError

    def loss(self, step: Step, head: Head | None) -> Mean:
        """The term on one micro-batch; each rank calls it once a micro-batch, whatever is in it."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerTerm(Term):
    """A term that reads chosen layers."""

    layers: tuple[int, ...] = ()  # decoder layers, 0-based; at least one where the weight is not 0

    site: ClassVar[str] = "value"

    def __post_init__(self) -> None:
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
    """A term that asks the base model, which is a second forward pass."""

    # Only in one of so many optimizer steps, with as many times the weight: the mean pull is the
    # same, and the passes of the base model are fewer.
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
