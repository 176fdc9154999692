"""Terms that make image values readable, and one that hands the reading to the answer.

Shapes: S layers, N cells of several images side by side, C channels, K points, Q questions,
O options or outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvfix.bounds import number
from kvfix.eval.grid import sample_cells
from kvfix.eval.readouts import READOUTS, Marked
from kvfix.eval.source import View
from kvfix.repair import losses
from kvfix.repair.batch import Batch
from kvfix.repair.heads import MaskHead, Temperature, TextProjection
from kvfix.repair.losses import Mean
from kvfix.repair.step import MaskTarget, Matches, Step
from kvfix.repair.term import Head, LayerTerm, Needs, Term


@dataclass(frozen=True)
class MaskTerm(LayerTerm):
    """Linear mask head on image values: BCE + dice.

    Attributes:
        dice: Weight of dice beside BCE.
        outputs: Kinds of foreground; a mask's `category` says which output learns it.
        shared: One head for all layers.
    """

    dice: float = number(1.0, least=0)
    outputs: int = number(1, least=1)
    shared: bool = False

    def make_head(self, channels: int, seed: int) -> MaskHead:
        """One logit a cell, layer and kind of foreground."""
        generator = torch.Generator().manual_seed(seed)
        return MaskHead(
            channels,
            len(self.layers),
            outputs=self.outputs,
            shared=self.shared,
            generator=generator,
        )

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Masks with a head and a valid cell."""
        masks = (m for extras in batch.extras for m in extras.masks)
        return sum(m.category >= 0 and bool(m.valid_HW.any()) for m in masks)

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over masks; nats and dice added."""
        assert isinstance(head, MaskHead)
        targets = [(n, target) for n, target in _targets(step) if target.category >= 0]
        wrong = {target.category for _, target in targets} - set(range(self.outputs))
        if wrong:
            raise ValueError(
                f"expected mask categories 0..{self.outputs - 1}, found {sorted(wrong)}; set "
                "outputs of the mask term"
            )
        if not targets:
            return _none(head)
        v_SNC, counts = _side_by_side(step, self.layers, targets)
        category_N = torch.cat(
            [torch.full((n,), t.category) for n, (_, t) in zip(counts, targets, strict=True)]
        ).to(v_SNC.device)
        logits_SNO = head(v_SNC)
        at_SN1 = category_N[None, :, None].expand(len(v_SNC), -1, 1)
        logits_SN = logits_SNO.gather(-1, at_SN1)[..., 0]
        share_N, valid_N = _labels(targets, v_SNC.device)
        bce = losses.mask_bce(logits_SN, share_N, valid_N, counts)
        dice = losses.mask_dice(logits_SN, share_N, valid_N, counts)
        return Mean(bce.total + self.dice * dice.total, bce.weight)


@dataclass(frozen=True)
class TextValueTerm(LayerTerm):
    """InfoNCE: the value at an expression's last token finds the patches that it names.

    Attributes:
        temperature: To start with; learned.
        shared: One projection for all layers.
    """

    temperature: float = number(0.07, above=0.01)
    shared: bool = False

    def needs(self) -> Needs:
        """Values of the image and of the text's last token."""
        return super().needs() | Needs(text=True)

    def make_head(self, channels: int, seed: int) -> TextProjection:
        """Starts as the identity, so the seed moves nothing."""
        return TextProjection(
            channels, len(self.layers), shared=self.shared, temperature=self.temperature
        )

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Named masks that are not empty."""
        masks = (m for extras in batch.extras for m in extras.masks)
        return sum(m.named and bool((m.share_HW * m.valid_HW).any()) for m in masks)

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over masks that their sample's text names, nats."""
        assert isinstance(head, TextProjection)
        targets = [(sample, target) for sample, target in _targets(step) if target.named]
        if not targets:
            return _none(head)
        v_SNC, counts = _side_by_side(step, self.layers, targets)
        t_STC = torch.stack([step.text("value", self.layers, n) for n, _ in targets], dim=1)
        query_STC = head(t_STC)
        of_N = torch.repeat_interleave(torch.tensor(counts)).to(v_SNC.device)
        similarity_SN = (query_STC[:, of_N] * F.normalize(v_SNC.float(), dim=-1)).sum(-1)
        share_N, valid_N = _labels(targets, v_SNC.device)
        return losses.text_value_nce(similarity_SN, share_N, valid_N, counts)


@dataclass(frozen=True)
class CorrespondenceTerm(LayerTerm):
    """InfoNCE between values at matched points of two images, both ways.

    Attributes:
        temperature: To start with; learned.
    """

    temperature: float = number(0.07, above=0.01)

    def make_head(self, channels: int, seed: int) -> Temperature:
        """The temperature alone."""
        return Temperature(self.temperature)

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Matched points, once a direction."""
        return 2 * sum(int(m.valid_K.sum()) for extras in batch.extras for m in extras.matches)

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over points, each counted once a direction, nats."""
        assert isinstance(head, Temperature)
        ways = [
            way
            for sample, extras in enumerate(step.extras)
            for matches in extras.matches
            for way in self._both_ways(step, sample, matches)
        ]
        if not ways:
            return _none(head)
        # All points in one call of the head.
        warm_SMC = head(torch.cat([way[0] for way in ways], dim=1))
        sources = warm_SMC.split([way[0].shape[1] for way in ways], dim=1)
        return losses.pooled(
            [
                losses.correspondence_nce(source, *way[1:])
                for source, way in zip(sources, ways, strict=True)
            ]
        )

    def _both_ways(
        self, step: Step, sample: int, matches: Matches
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Arguments of `correspondence_nce`, the source still without the temperature."""
        images = [step.image("value", self.layers, sample, image) for image in matches.images]
        points = [
            F.normalize(sample_cells(f_SHWC, rc_K2), dim=-1)
            for f_SHWC, rc_K2 in zip(images, matches.rc_K2, strict=True)
        ]
        return [
            (
                points[source],
                points[target],
                F.normalize(images[target].flatten(1, 2).float(), dim=-1),
                near_cells(
                    matches.rc_K2[target], (images[target].shape[1], images[target].shape[2])
                ),
                matches.valid_K,
            )
            for source, target in ((0, 1), (1, 0))
        ]


def near_cells(rc_K2: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Cells that a bilinear sample at each point is made of, bool near_KN in row-major order."""
    limit = torch.tensor([grid_hw[0] - 1, grid_hw[1] - 1], dtype=rc_K2.dtype)
    rc_K2 = rc_K2.cpu().clamp(min=torch.zeros(2, dtype=rc_K2.dtype), max=limit)
    rows_KH = (rc_K2[:, :1] - torch.arange(grid_hw[0])).abs() < 1
    cols_KW = (rc_K2[:, 1:] - torch.arange(grid_hw[1])).abs() < 1
    return (rows_KH[:, :, None] & cols_KW[:, None]).flatten(1)


@dataclass(frozen=True)
class DistilTerm(Term):
    """The readout's answer, taught to the language model's choice of an option letter.

    The readout is the diagnosis's own rule (`kvfix.eval.readouts`) on the model's values as they
    stand in the question's prompt, without a gradient; it needs no truth. Its scores are
    standardised over the options, as a cosine that differs by 0.01 may be sure.

    Attributes:
        temperature: Of the standardised scores; the smaller, the surer it is.
        layer: Decoder layer that is read out, 0-based; the diagnosis names the best one.
        kinds: Of question; empty: all that have a readout. Name those whose readout the diagnosis
            found to be right: another one teaches noise.
    """

    temperature: float = number(0.5, above=0)
    layer: int = number(0, least=0)
    kinds: tuple[str, ...] = ()

    def needs(self) -> Needs:
        """Logits where the option letter is predicted, and values."""
        return Needs(rows=True, sites=frozenset({"value"}), layers=frozenset({self.layer}))

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Questions with a readout."""
        asked = (e.readable for e in batch.extras if e.choice is not None)
        return sum(readable is not None and readable.among(self.kinds) for readable in asked)

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over questions with a readout, nats."""
        if step.rows is None:
            raise ValueError("expected logits for the distillation term, found none")
        logits_RW = step.rows.logits_RW
        taught = [
            (choice.row, choice.letters_O, scores_O)
            for sample, extras in enumerate(step.extras)
            if (choice := extras.choice) is not None
            and (scores_O := self._scores(step, sample)) is not None
        ]
        if not taught:
            return Mean(
                logits_RW[:1].float().sum() * 0, logits_RW.new_zeros((), dtype=torch.float32)
            )
        most, device = max(len(letters) for _, letters, _ in taught), logits_RW.device
        letters_QO, scores_QO, options_QO = (
            torch.stack([F.pad(x, (0, most - len(x))) for x in column]).to(device)
            for column in (
                [letters for _, letters, _ in taught],
                [scores.float() for _, _, scores in taught],
                [torch.ones(len(letters), dtype=torch.bool) for _, letters, _ in taught],
            )
        )
        rows_Q = torch.tensor([row for row, _, _ in taught], device=device)
        return losses.distil_choice(
            logits_RW[rows_Q[:, None], letters_QO],
            scores_QO,
            options_QO,
            torch.ones(len(taught)),
            temperature=self.temperature,
        )

    def _scores(self, step: Step, sample: int) -> Tensor | None:
        """Standardised scores of a question's options; None where no rule reads it."""
        readable = step.extras[sample].readable
        if readable is None or not readable.among(self.kinds):
            return None
        views = [
            View({"value": step.image("value", (self.layer,), sample, image).detach()}, span.layout)
            for image, span in enumerate(step.encoded.images[sample])
        ]
        rule = READOUTS[readable.sub_task]
        score_O = rule.scores(Marked(views, readable.compared), "value")[0]
        return (score_O - score_O.mean()) / score_O.std(correction=0).clamp(min=1e-6)


def _targets(step: Step) -> list[tuple[int, MaskTarget]]:
    return [(n, target) for n, extras in enumerate(step.extras) for target in extras.masks]


def _side_by_side(
    step: Step, layers: Sequence[int], targets: list[tuple[int, MaskTarget]]
) -> tuple[Tensor, list[int]]:
    """Values of the targets' images as v_SNC, and how many cells each has."""
    images = [
        step.image("value", layers, sample, target.image).flatten(1, 2)
        for sample, target in targets
    ]
    for v_SNC, (sample, target) in zip(images, targets, strict=True):
        if v_SNC.shape[1] != target.share_HW.numel():
            raise ValueError(
                f"sample {sample}, image {target.image}: expected a mask on its grid of "
                f"{v_SNC.shape[1]} cells, found {tuple(target.share_HW.shape)}"
            )
    return torch.cat(images, dim=1), [v_SNC.shape[1] for v_SNC in images]


def _labels(targets: list[tuple[int, MaskTarget]], device: torch.device) -> tuple[Tensor, Tensor]:
    share_N = torch.cat([target.share_HW.flatten() for _, target in targets])
    valid_N = torch.cat([target.valid_HW.flatten() for _, target in targets])
    return share_N.to(device), valid_N.to(device)


def _none(head: MaskHead | TextProjection | Temperature) -> Mean:
    """A rank without such samples still runs the head."""
    zero = head.dummy()
    return Mean(zero, torch.zeros((), device=zero.device))
