"""All loss terms of a repair as one config, and what a trainer asks of them.

    for name, term in losses.active().items():
        mean = term.loss(step, heads[name])          # every rank, every micro-batch
        total = total + term.weight_at(n) * mean.value

Several ranks or micro-batches agree with one only if each divides its `mean.total` by the weight of
ALL of them (times the ranks, where gradients are averaged): samples with a mask are not dealt out
evenly. `dependence` alone is a ratio within each micro-batch: two ranks of two images do not give
quite the loss of one rank of four.

YAML maps 1:1, for instance `losses: {mask: {weight: 0.5, layers: [8, 12]}}`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from torch import nn

from kvfix.repair.terms.correspondence import CorrespondenceTerm
from kvfix.repair.terms.dependence import DependenceTerm
from kvfix.repair.terms.distil import DistilTerm
from kvfix.repair.terms.evidence import EvidenceTerm
from kvfix.repair.terms.gram import GramTerm
from kvfix.repair.terms.heads import Head
from kvfix.repair.terms.kl import KlTerm
from kvfix.repair.terms.mask import MaskTerm
from kvfix.repair.terms.mass import MassTerm
from kvfix.repair.terms.term import Needs, Term
from kvfix.repair.terms.text_value import TextValueTerm

__all__ = ["Heads", "Losses", "Needs", "Term"]


@dataclass(frozen=True)
class Losses:
    """Every term; a weight of 0 leaves one out."""

    mask: MaskTerm = field(default_factory=MaskTerm)  # linear mask head on image values, BCE + dice
    # An expression's value finds the patches it names, InfoNCE.
    text_value: TextValueTerm = field(default_factory=TextValueTerm)
    # Values at matched points of two images, InfoNCE.
    correspondence: CorrespondenceTerm = field(default_factory=CorrespondenceTerm)
    # Later values tell what the readout measures, cell by cell.
    evidence: EvidenceTerm = field(default_factory=EvidenceTerm)
    # The readout's answer, taught to the language model.
    distil: DistilTerm = field(default_factory=DistilTerm)
    kl: KlTerm = field(default_factory=KlTerm)  # next-word distribution, held to the base model's
    # Similarities between an image's values, held to the base model's.
    gram: GramTerm = field(default_factory=GramTerm)
    # Chosen keys shall depend on the image.
    dependence: DependenceTerm = field(default_factory=DependenceTerm)
    mass: MassTerm = field(default_factory=MassTerm)  # late text shall not look at chosen keys

    def active(self) -> dict[str, Term]:
        """Terms with a weight, in the same order on every rank."""
        terms: dict[str, Term] = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: term for name, term in terms.items() if term.weight > 0}

    def needs(self, step: int | None = None) -> Needs:
        """What all of them need; of an optimizer step, those that are not idle in it."""
        needs = Needs()
        for term in self.active().values():
            if step is None or not term.idle(step):
                needs = needs | term.needs()
        return needs


class Heads(nn.Module):
    """The heads of the active terms, by the term's name; make them AFTER the adapter."""

    def __init__(self, losses: Losses, *, channels: int, seed: int):
        """Build them for values of so many channels: `mlm.n_kv_heads * mlm.head_dim`."""
        super().__init__()
        made = {name: term.make_head(channels, seed) for name, term in losses.active().items()}
        self.by_term = nn.ModuleDict(
            {name: head for name, head in made.items() if head is not None}
        )

    def __getitem__(self, name: str) -> Head | None:
        if name not in self.by_term:
            return None
        head = self.by_term[name]
        assert isinstance(head, Head)
        return head
