"""A term that writes the readout's evidence into later image values, where the answer can fetch it.

A readout compares two images by a product of features. A language model that is to answer must do
the same inside: compare the tokens of one image with another's, and keep the outcome. One option
letter a question is little to learn that from. So the outcome is asked of the image tokens
themselves: a linear head on their values must tell what the readout measures there, cell by cell.

The evidence is the model's own (values of an earlier layer, without a gradient): no truth is used.

Shapes: S layers, N cells of several images side by side, C channels, K options.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvfix.bounds import number
from kvfix.eval.grid import PIXEL_CENTRE, sample_cells, to_cells
from kvfix.eval.mcq.readouts import Points
from kvfix.repair.batch import Batch
from kvfix.repair.extras import ReadableQuestion
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head, MaskHead
from kvfix.repair.terms.mask import _none
from kvfix.repair.terms.mean import Mean, masked_mean, standardised
from kvfix.repair.terms.term import LayerTerm, Needs


@dataclass(frozen=True)
class EvidenceTerm(LayerTerm):
    """Linear head on values against the readout's evidence, squared error of standardised maps."""

    source: int = number(0, least=0)  # decoder layer whose values the readout compares, 0-based
    shared: bool = False  # one head for all layers
    kinds: tuple[str, ...] = ()  # of question; empty: all that have a readout

    def needs(self) -> Needs:
        """Values where evidence is read and where it is written."""
        return super().needs() | Needs(layers=frozenset({self.source}))

    def make_head(self, channels: int, seed: int) -> MaskHead:
        """One number a cell and layer."""
        generator = torch.Generator().manual_seed(seed)
        return MaskHead(channels, len(self.layers), shared=self.shared, generator=generator)

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Questions with a readout."""
        return sum(bool(extras.readable_of(self.kinds)) for extras in batch.extras)

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over questions of the mean over layers and cells."""
        assert isinstance(head, MaskHead)
        asked = [
            (n, readable)
            for n, extras in enumerate(step.extras)
            if (readable := extras.readable_of(self.kinds)) is not None
        ]
        if not asked:
            return _none(head)
        found = [self._evidence(step, sample, readable) for sample, readable in asked]
        values = [
            torch.cat(
                [step.image("value", self.layers, n, i).flatten(1, 2) for i, _ in maps], dim=1
            )
            for (n, _), maps in zip(asked, found, strict=True)
        ]
        counts = [v_SNC.shape[1] for v_SNC in values]
        said = head(torch.cat(values, dim=1))[..., 0].split(counts, dim=1)
        errors = [
            (says_SN - standardised(torch.cat([map_N for _, map_N in maps]))).square().mean()
            for says_SN, maps in zip(said, found, strict=True)
        ]
        stacked = torch.stack(errors)
        return masked_mean(stacked, torch.ones_like(stacked))

    def _evidence(
        self, step: Step, sample: int, readable: ReadableQuestion
    ) -> list[tuple[int, Tensor]]:
        """(image, evidence of its cells) of every image that holds options."""

        def of(image: int) -> Tensor:
            return step.image("value", (self.source,), sample, image).detach().float()

        compared = readable.compared
        if isinstance(compared, Points):
            layout = step.encoded.images[sample][0].layout
            at_12 = to_cells(compared.reference_12 + PIXEL_CENTRE, layout)
            wanted_C = sample_cells(of(0), at_12)[0, 0]
            return [(1, F.cosine_similarity(of(1)[0].flatten(0, 1), wanted_C, dim=-1))]
        return [(i, image_evidence(of(0), of(i), readable.sub_task)) for i in compared.options]


def image_evidence(first_1HWC: Tensor, other_1HWC: Tensor, sub_task: str) -> Tensor:
    """What each cell of an image says for its similarity with the first one.

    For styles the readout compares Gram matrices, whose inner product is a mean over cells of
    f^T G f. For all else it is the cosine with the best matching cell of the first image: the mean
    of a picture says little of a single cell, a match much.
    """
    first_NC, other_NC = (x[0].flatten(0, 1) for x in (first_1HWC, other_1HWC))
    if sub_task == "Art_Style":
        unit_NC = F.normalize(other_NC, dim=-1)
        gram_CC = first_NC.mT @ first_NC / len(first_NC)
        return torch.einsum("nc,cd,nd->n", unit_NC, gram_CC, unit_NC)
    return (F.normalize(other_NC, dim=-1) @ F.normalize(first_NC, dim=-1).mT).amax(-1)
