"""A term that makes the readout's answer the model's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvfix.bounds import number
from kvfix.eval.mcq.readouts import READOUTS, Marked
from kvfix.eval.source import View
from kvfix.repair.batch import Batch
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head
from kvfix.repair.terms.mean import Mean, masked_mean, mean_of_images, standardised
from kvfix.repair.terms.term import Needs, Term


def distil_choice(
    letters_QO: Tensor,
    scores_QO: Tensor,
    options_QO: Tensor,
    use_Q: Tensor,
    *,
    temperature: float,
) -> Mean:
    """KL from a readout's answer to the language model's, nats a question (Hinton et al. 2015).

    The readout teaches: no gradient goes through its scores, which the temperature divides (the
    smaller, the surer). `letters_QO` are the language model's logits of the option letters at the
    answer's position, `options_QO` the options that exist, `use_Q` the weight of each question.
    """
    missing = ~options_QO.to(letters_QO.device)
    least = torch.finfo(torch.float32).min  # -inf would make 0 * inf of a missing option
    scores = scores_QO.detach().to(letters_QO.device, torch.float32) / temperature
    teacher = scores.masked_fill(missing, least).log_softmax(-1)
    student = letters_QO.float().masked_fill(missing, least).log_softmax(-1)
    terms = torch.where(missing, 0.0, teacher.exp() * (teacher - student))
    return masked_mean(terms.sum(-1), use_Q.to(letters_QO.device))


@dataclass(frozen=True)
class DistilTerm(Term):
    """The readout's answer, taught to the language model's choice of an option letter.

    The readout is the diagnosis's own rule (`kvfix.eval.mcq.readouts`) on the model's values as
    they stand in the question's prompt, without a gradient; it needs no truth. Its scores are
    standardised over the options, as a cosine that differs by 0.01 may be sure.
    """

    # Of the standardised scores; the smaller, the surer it is.
    temperature: float = number(0.5, above=0)
    # Decoder layer that is read out, 0-based; the diagnosis names the best one.
    layer: int = number(0, least=0)
    # Of question; empty: all that have a readout. Name those whose readout the diagnosis found to
    # be right: another one teaches noise.
    kinds: tuple[str, ...] = ()

    def needs(self) -> Needs:
        """Logits where the option letter is predicted, and values."""
        return Needs(rows=True, sites=frozenset({"value"}), layers=frozenset({self.layer}))

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Questions with a readout."""
        return sum(bool(e.choice and e.readable_of(self.kinds)) for e in batch.extras)

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
            return mean_of_images([], like=logits_RW[:1])
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
        return distil_choice(
            logits_RW[rows_Q[:, None], letters_QO],
            scores_QO,
            options_QO,
            torch.ones(len(taught)),
            temperature=self.temperature,
        )

    def _scores(self, step: Step, sample: int) -> Tensor | None:
        """Standardised scores of a question's options; None where no rule reads it."""
        readable = step.extras[sample].readable_of(self.kinds)
        if readable is None:
            return None
        views = [
            View({"value": step.image("value", (self.layer,), sample, image).detach()}, span.layout)
            for image, span in enumerate(step.encoded.images[sample])
        ]
        rule = READOUTS[readable.sub_task]
        return standardised(rule.scores(Marked(views, readable.compared), "value")[0])
