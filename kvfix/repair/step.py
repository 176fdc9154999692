"""What one training step hands to the loss terms, and how they take from it.

Shapes: S layers, H, W rows and columns of a grid, C channels, R rows (positions) with logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kvfix.mlm.capture import LM_SITES, SampleFeatures
from kvfix.mlm.load import Encoded
from kvfix.repair.extras import Extras
from kvfix.repair.queries import Attention
from kvfix.repair.terms.mean import Mean


class StepKeys:
    """Keys of the earlier micro-batches of the same step, without a graph.

    All of them are of the same weights. A mean over earlier steps is not: keys move away from it by
    training alone, and a loss that asks for distance from it is met by keys that drift and depend
    on no image. That was seen.
    """

    def __init__(self) -> None:
        self._number = -1
        self._seen: list[Tensor] = []

    def begin(self, number: int) -> None:
        """Forget what another optimizer step than `number` saw."""
        if number != self._number:
            self._number, self._seen = number, []

    def observe(self, k_IMD: Tensor) -> None:
        """Take in the keys of a micro-batch."""
        self._seen.append(k_IMD.detach())

    @property
    def k_IMD(self) -> Tensor | None:
        """All that was taken in; None before any image."""
        return torch.cat(self._seen) if self._seen else None


class Rows(NamedTuple):
    """Next-word logits at the positions that losses read."""

    logits_RW: Tensor  # of the tuned model
    base_RW: Tensor | None  # of the base model; None if no term needs it
    answer_R: Tensor  # bool, rows that predict a token of the answer
    text_R: Tensor  # bool, rows that predict another token of text


@dataclass(frozen=True, eq=False)
class Step:
    """One micro-batch after its forward pass."""

    encoded: Encoded  # the batch
    features: Sequence[SampleFeatures]  # captured with a graph, one entry per sample
    layers: tuple[int, ...]  # the layers that `features` (and `base`) hold, in order
    extras: Sequence[Extras]  # one entry per sample
    # The same features of the base model; None if no term needs them.
    base: Sequence[SampleFeatures] | None = None
    rows: Rows | None = None  # logits; None if no term needs them
    attention: dict[int, list[Attention]] = field(default_factory=dict)  # of `QueryKeys`, by layer
    # Bool over all layers, KV heads and the tokens of an image at the calibrated resolution: the
    # keys to suppress, or a random control of equal count (`on_tokens` and `random_keys` of
    # `kvfix.mlm.edges` make it from the diagnosis's map).
    agnostic_SHV: Tensor | None = None
    # `k_proj.bias` by layer, None for a model without; subtracted in the statistic.
    key_bias: dict[int, Tensor | None] = field(default_factory=dict)
    # Chosen keys of the step's micro-batches before this one.
    earlier: StepKeys = field(default_factory=StepKeys)

    def image(self, site: str, layers: Sequence[int], sample: int, image: int) -> Tensor:
        """f_SHWC of an image of the tuned model at captured layers; features without a graph are
        refused.
        """
        f_SHWC = _taken(self.features[sample].images[image], site, self._at(layers))
        return _with_graph(f_SHWC, site)

    def base_image(self, site: str, layers: Sequence[int], sample: int, image: int) -> Tensor:
        """The same of the base model."""
        if self.base is None:
            raise ValueError(f"expected {site} features of the base model, found none captured")
        return _taken(self.base[sample].images[image], site, self._at(layers))

    def text(self, site: str, layers: Sequence[int], sample: int) -> Tensor:
        """t_SC at the last token of a sample's text."""
        of = self.features[sample].text
        if of is None:
            raise ValueError(f"expected {site} features of the text, found Capture(text=False)")
        return _with_graph(_taken(of, site, self._at(layers)), site)

    def attended(self, layer: int) -> list[Attention]:
        """Queries and keys of a layer, one entry per sample; with something that can be learned."""
        if layer not in self.attention:
            raise ValueError(
                f"expected attention of layers {sorted(self.attention)}, found {layer} asked for"
            )
        of = self.attention[layer]
        if not any(a.q_TQD.requires_grad for a in of):
            for a in of:
                _with_graph(a.k_LHD, "key")
        return of

    def real_images(self) -> list[tuple[int, int]]:
        """(sample, image) of every image that is not a stand-in."""
        return [
            (b, i)
            for b, (of, extras) in enumerate(zip(self.features, self.extras, strict=True))
            for i in range(len(of.images))
            if not extras.stand_in
        ]

    def zero(self, site: str, layers: Sequence[int]) -> Mean:
        """Of a term that finds nothing in this batch: 0 of 0, with the graph of a stand-in."""
        for sample, of in enumerate(self.features):
            for image in range(len(of.images)):
                x = self.image(site, layers, sample, image).float().sum() * 0
                return Mean(x, torch.zeros_like(x).detach())
        raise ValueError(
            "expected at least one image in the batch, found none: give text-only samples a "
            "stand-in image, so that every rank runs the vision tower"
        )

    def _at(self, layers: Sequence[int]) -> list[int]:
        missing = [layer for layer in layers if layer not in self.layers]
        if missing:
            raise ValueError(f"expected layers out of {list(self.layers)}, found {missing}")
        return [self.layers.index(layer) for layer in layers]


def _taken(features: dict[str, Tensor], site: str, rows: list[int]) -> Tensor:
    if site not in features or site not in LM_SITES:
        raise ValueError(f"expected {site} to be captured, found {', '.join(features) or 'none'}")
    return features[site][rows]


def _with_graph(x: Tensor, site: str) -> Tensor:
    """Refuse features that nothing can be learned from: the loss would fall by its head alone."""
    if torch.is_grad_enabled() and not x.requires_grad:
        raise ValueError(
            f"expected {site} features with a gradient, found none: use Capture(grad=True), "
            "non-reentrant gradient checkpointing, and an adapter at or before the chosen layers"
        )
    return x
