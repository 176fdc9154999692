"""What holds a repair near the base model: its words on text, and how its values relate.

Both compare with the same model whose adapter is switched off (`kvfix.repair.base_pass`), so no
second copy is in memory. Both work through their rows chunk by chunk and compute a chunk again in
backward: at a vocabulary of 150,000 or an image of 6,561 cells the float32 intermediates of all
rows at once would be larger than the model's own activations.

Shapes: N rows (positions) or cells, W words of the vocabulary, S layers, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kvfix.repair.losses import Mean, masked_mean


def kl_anchor(logits_NW: Tensor, base_NW: Tensor, weight_N: Tensor, *, chunk: int = 32) -> Mean:
    """KL(base || tuned) of the next-word distributions, nats a position.

    The base leads: where it gives a word weight, the tuned model must (forward KL).

    Args:
        logits_NW: Of the tuned model at the wanted positions only, any float dtype.
        base_NW: Of the base model there.
        weight_N: At least 0; bool or float.
        chunk: Rows at a time; about 16 * chunk * W bytes are alive.

    Returns:
        Mean over positions.

    Raises:
        ValueError: Shapes that differ.
    """
    if logits_NW.shape != base_NW.shape or len(weight_N) != len(logits_NW):
        raise ValueError(
            f"expected logits of the same positions, found {tuple(logits_NW.shape)} tuned, "
            f"{tuple(base_NW.shape)} base and {len(weight_N)} weights"
        )
    weight_N = weight_N.detach().to(logits_NW.device, torch.float32)
    parts = (logits_NW, base_NW.detach(), weight_N)
    return Mean(sum_over_rows(_kl_sum, parts, chunk=chunk), weight_N.sum())


def _kl_sum(logits_NW: Tensor, base_NW: Tensor, weight_N: Tensor) -> Tensor:
    base = base_NW.float().log_softmax(-1)
    tuned = logits_NW.float().log_softmax(-1)
    kl_N = F.kl_div(tuned, base, reduction="none", log_target=True).sum(-1)
    return masked_mean(kl_N, weight_N).total


def gram_anchor(
    v_SNC: Tensor, base_SNC: Tensor, counts: Sequence[int], *, chunk: int = 256
) -> Mean:
    """Squared change of the cell-by-cell cosine Gram matrix of an image's values.

    It holds which parts of an image look alike and leaves the values free to turn as a whole
    (Gram anchoring, as in DINOv3 and LaVer, arXiv 2512.06281, there on a teacher's patches).

    Args:
        v_SNC: Values of the tuned model, cells of all images side by side.
        base_SNC: Values of the base model at the same cells.
        counts: Cells of each image; pairs are formed inside an image only.
        chunk: Rows of a Gram matrix at a time.

    Returns:
        Mean over images of the mean over layers and pairs of (cos - base cos)^2, in [0, 4].

    Raises:
        ValueError: Shapes that differ.
    """
    if v_SNC.shape != base_SNC.shape:
        raise ValueError(
            f"expected values at the same cells, found {tuple(v_SNC.shape)} tuned and "
            f"{tuple(base_SNC.shape)} base"
        )
    unit_SNC = F.normalize(v_SNC.float(), dim=-1)
    still_SNC = F.normalize(base_SNC.detach().float(), dim=-1)
    total = unit_SNC.sum() * 0  # the graph, when there is no image
    for unit, still in zip(unit_SNC.split(counts, 1), still_SNC.split(counts, 1), strict=True):
        changed = sum_over_rows(
            _gram_sum(unit, still), (unit.movedim(1, 0), still.movedim(1, 0)), chunk=chunk
        )
        total = total + changed / (unit.shape[0] * unit.shape[1] ** 2)
    return Mean(total, total.new_tensor(float(len(counts))).detach())


def _gram_sum(unit_SNC: Tensor, still_SNC: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Of some rows of an image with all of its cells."""

    def total(rows_MSC: Tensor, still_MSC: Tensor) -> Tensor:
        cos_SMN = rows_MSC.movedim(0, 1) @ unit_SNC.mT
        base_SMN = still_MSC.movedim(0, 1) @ still_SNC.mT
        return (cos_SMN - base_SMN).square().sum()

    return total


def sum_over_rows(total: Callable[..., Tensor], rows: Sequence[Tensor], *, chunk: int) -> Tensor:
    """Sum of `total(*some rows)` over chunks of rows; only one chunk's intermediates are alive.

    Args:
        total: Rows -> 0-d sum over them; it uses no random numbers and no parameter that could be
            partitioned over ranks, as it runs again in backward, a number of times that depends on
            the batch.
        rows: Tensors of equally many rows along their first axis; the first may need a gradient.
        chunk: Rows at a time.

    Returns:
        0-d; 0 with a graph where there are no rows.
    """
    if not len(rows[0]):
        return rows[0].float().sum() * 0
    chunks = zip(*(x.split(chunk) for x in rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.stack([total(*part) for part in chunks]).sum()
    return torch.stack(
        [checkpoint(total, *part, use_reentrant=False, preserve_rng_state=False) for part in chunks]
    ).sum()
