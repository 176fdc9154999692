"""Losses that make image values readable, and hand what they hold to the language model's answer.

No published work trains on value states; these are kvfix's own, made of standard parts, each named
where it is used. Every loss returns a `Mean`: a total that carries the graph and a weight that does
not. Ranks and micro-batches add totals and weights, so that the mean of a step is the same however
its samples were shared out.

Shapes: S layers (or sites), N cells of all images side by side, I images, C channels, K matched
points, Q questions, O options. `counts` are the cells of each image, in order; they sum to N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Mean(NamedTuple):
    """A mean that can still be pooled with others.

    Attributes:
        total: Sum over what counts, 0-d float32; 0 with a graph where nothing does.
        weight: How many (or what weight) it is the sum of, 0-d float32 without a graph.
    """

    total: Tensor
    weight: Tensor

    @property
    def value(self) -> Tensor:
        """Total over weight; 0, with a graph, where nothing counts."""
        return self.total / torch.where(self.weight > 0, self.weight, 1)


def masked_mean(x: Tensor, weight: Tensor) -> Mean:
    """Weighted mean inside a mask; what is outside may be anything, also NaN.

    Args:
        x: Any shape.
        weight: At least 0, broadcast to x; bool or float.
    """
    weight = weight.detach().float().expand_as(x)
    # A product would let a masked NaN through, as 0 * NaN is NaN.
    inside = torch.where(weight > 0, x.float() * weight, 0.0)
    return Mean(inside.sum(), weight.sum())


def mask_bce(logits_SN: Tensor, share_N: Tensor, valid_N: Tensor, counts: Sequence[int]) -> Mean:
    """Binary cross-entropy of foreground logits with soft labels, nats a cell.

    Args:
        logits_SN: Of a head on values.
        share_N: In [0, 1]: foreground share of each cell's area.
        valid_N: In [0, 1]: how much of each cell counts (inside the image and not void).
        counts: Cells of each image.

    Returns:
        Mean over images of the mean over layers and valid cells; images without any are left out.
    """
    target_SN = share_N.to(logits_SN.device, torch.float32).expand_as(logits_SN)
    bce_SN = F.binary_cross_entropy_with_logits(logits_SN.float(), target_SN, reduction="none")
    valid_N = valid_N.to(logits_SN.device)
    return _mean_of_images(
        [
            masked_mean(bce, valid)
            for bce, valid in zip(bce_SN.split(counts, 1), valid_N.split(counts), strict=True)
        ],
        like=bce_SN,
    )


def mask_dice(
    logits_SN: Tensor,
    share_N: Tensor,
    valid_N: Tensor,
    counts: Sequence[int],
    *,
    smooth: float = 1.0,
) -> Mean:
    """Dice loss with squared areas in the denominator (V-Net, Milletari et al. 2016).

    With squares the loss is least where prediction and SOFT label agree; with plain sums it would
    push a half-covered cell to 0 or 1.

    Args:
        logits_SN: As in `mask_bce`, like the next three.
        share_N: Soft labels.
        valid_N: Weights.
        counts: Cells of each image.
        smooth: Added above and below, in cells: an empty mask is learnt as empty.

    Returns:
        Mean over images (in [0, 1]) of the mean over layers.
    """
    valid_N = valid_N.to(logits_SN.device, torch.float32)
    share_N = share_N.to(logits_SN.device, torch.float32)
    means = []
    for logits, share, valid in zip(
        logits_SN.float().split(counts, 1),
        share_N.split(counts),
        valid_N.split(counts),
        strict=True,
    ):
        p = logits.sigmoid()
        above_S = 2 * (valid * p * share).sum(1) + smooth
        below_S = (valid * (p.square() + share.square())).sum(1) + smooth
        means.append(masked_mean(1 - above_S / below_S, (valid.sum() > 0)))
    return _mean_of_images(means, like=logits_SN)


def text_value_nce(
    similarity_SN: Tensor, share_N: Tensor, valid_N: Tensor, counts: Sequence[int]
) -> Mean:
    """InfoNCE of an expression's value against the patch values of its image, nats.

    Several positives stand outside the logarithm (SupCon's L_out, Khosla et al. 2020, eq. 2),
    weighted by how much of the mask each holds: all of the mask must be found, not its easiest
    cell. The least possible loss is the entropy of these weights, log n for n whole cells.

    Args:
        similarity_SN: Of each cell with the expression of its image, over the temperature.
        share_N: In [0, 1]: share of each cell that the expression names.
        valid_N: In [0, 1]; cells of 0 are neither positive nor negative.
        counts: Cells of each image.

    Returns:
        Mean over images of the mean over layers; images whose mask is empty are left out.
    """
    similarity_SN = similarity_SN.float()
    means = []
    positive_N = (share_N * valid_N).to(similarity_SN.device, torch.float32)
    candidate_N = (valid_N > 0).to(similarity_SN.device)
    for similarity, positive, candidate in zip(
        similarity_SN.split(counts, 1),
        positive_N.split(counts),
        candidate_N.split(counts),
        strict=True,
    ):
        log_all_S1 = similarity.masked_fill(~candidate, -torch.inf).logsumexp(1, keepdim=True)
        means.append(masked_mean(log_all_S1 - similarity, positive))
    return _mean_of_images(means, like=similarity_SN)


def correspondence_nce(
    source_SKC: Tensor,
    target_SKC: Tensor,
    cells_SNC: Tensor,
    near_KN: Tensor,
    valid_K: Tensor,
) -> Mean:
    """InfoNCE between matched points of two images, nats a point.

    Args:
        source_SKC: Unit features of one image at its points, over the temperature.
        target_SKC: Unit features of the other image at the matching points: the positives.
        cells_SNC: Unit features of all cells of the other image: the negatives.
        near_KN: Bool, cells that a positive is interpolated from; they are not its negatives.
        valid_K: Bool, points seen in both images.

    Returns:
        Mean over points of the mean over layers.
    """
    source_SKC, target_SKC = source_SKC.float(), target_SKC.float()
    positive_SK = (source_SKC * target_SKC).sum(-1)
    negative_SKN = torch.einsum("skc,snc->skn", source_SKC, cells_SNC.float())
    negative_SKN = negative_SKN.masked_fill(near_KN.to(negative_SKN.device), -torch.inf)
    together = torch.cat((positive_SK[..., None], negative_SKN), dim=-1)
    loss_K = (together.logsumexp(-1) - positive_SK).mean(0)
    return masked_mean(loss_K, valid_K.to(loss_K.device))


def distil_choice(
    letters_QO: Tensor,
    scores_QO: Tensor,
    options_QO: Tensor,
    use_Q: Tensor,
    *,
    temperature: float,
) -> Mean:
    """KL from a readout's answer to the language model's, nats a question (Hinton et al. 2015).

    The readout teaches: no gradient goes through its scores.

    Args:
        letters_QO: The language model's logits of the option letters at the answer's position.
        scores_QO: The readout's score of each option (higher is better).
        options_QO: Bool, options that exist.
        use_Q: Weight of each question, 0 for one without a readout.
        temperature: Divides the scores; the smaller, the surer the teacher. (0, inf)

    Returns:
        Mean over questions of KL(readout || language model); 0 where both say the same.
    """
    missing = ~options_QO.to(letters_QO.device)
    least = torch.finfo(torch.float32).min  # -inf would make 0 * inf of a missing option
    scores = scores_QO.detach().to(letters_QO.device, torch.float32) / temperature
    teacher = scores.masked_fill(missing, least).log_softmax(-1)
    student = letters_QO.float().masked_fill(missing, least).log_softmax(-1)
    terms = torch.where(missing, 0.0, teacher.exp() * (teacher - student))
    return masked_mean(terms.sum(-1), use_Q.to(letters_QO.device))


def answer_nll(logits_RW: Tensor, target_R: Tensor, answer_R: Tensor, *, chunk: int = 256) -> Mean:
    """The language model's own loss: negative log-likelihood of the tokens of answers, nats.

    Args:
        logits_RW: Next-word logits, any float dtype.
        target_R: Token ids.
        answer_R: Bool, rows that count.
        chunk: Rows at a time that are copied to float32.

    Returns:
        Mean over tokens.
    """
    at = answer_R.to(logits_RW.device).nonzero().flatten()
    parts = zip(at.split(chunk), target_R.to(logits_RW.device)[at].split(chunk), strict=True)
    totals = [
        F.cross_entropy(logits_RW[rows].float(), wanted, reduction="sum") for rows, wanted in parts
    ]
    # No answer in the batch: a zero that still has a graph.
    total = torch.stack(totals).sum() if len(at) else logits_RW[:1].float().sum() * 0
    return Mean(total, total.new_tensor(float(len(at))).detach())


def pooled(means: Sequence[Mean]) -> Mean:
    """All of them as one: totals and weights added.

    Raises:
        ValueError: None given: a 0 without a graph would part the ranks.
    """
    if not means:
        raise ValueError("expected at least one mean to pool, found none")
    return Mean(
        torch.stack([mean.total for mean in means]).sum(),
        torch.stack([mean.weight for mean in means]).sum(),
    )


def _mean_of_images(means: Sequence[Mean], *, like: Tensor) -> Mean:
    """Every image that has something counts once."""
    if not means:
        return Mean(like.float().sum() * 0, like.new_zeros((), dtype=torch.float32))
    values_I = torch.stack([mean.value for mean in means])
    return masked_mean(values_I, torch.stack([mean.weight > 0 for mean in means]))
