"""What the base model says of the same batch: one pass with the adapter off, no second copy.

Shapes: B samples, L positions, N chosen rows, W words of the vocabulary, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kvfix.mlm.capture import Capture, SampleFeatures
from kvfix.mlm.load import Encoded, Mlm


class BaseOutputs(NamedTuple):
    """Of the base model, without a graph."""

    logits_NW: Tensor | None  # at the asked rows; None if none were asked for
    # As `Capture` collects them; None if no site was asked for.
    features: list[SampleFeatures] | None


def run_base(
    mlm: Mlm,
    encoded: Encoded,
    *,
    rows_N: Tensor | None = None,
    sites: Iterable[str] = (),
    layers: Sequence[int] | None = None,
) -> BaseOutputs:
    """One forward pass of the base model inside the tuned one, which must have an adapter.

    Run it BEFORE the tuned pass and outside its `Capture` and `intervene` blocks: switching an
    adapter off and on sets `requires_grad` of its weights, and hooks would count the pass. `rows_N`
    are flat positions b * L + l whose next-word logits are wanted, in the model's dtype.
    """
    if not hasattr(mlm.model, "disable_adapter"):
        raise ValueError(
            "expected a model with an adapter, found none; attach one (kvfix.repair.lora.attach) "
            "before comparing with the base"
        )
    sites = tuple(sites)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_adapter_off(mlm))
        stack.enter_context(_evaluating(mlm.model))
        capture = None
        if sites:
            capture = stack.enter_context(Capture(mlm, encoded, sites=sites, layers=layers))
        out = mlm.base.model(**forward_inputs(mlm, encoded), use_cache=False)
        return BaseOutputs(
            None if rows_N is None else logits_at(mlm, out.last_hidden_state, rows_N),
            None if capture is None else capture.collect(),
        )


def forward_inputs(mlm: Mlm, encoded: Encoded) -> dict[str, Tensor]:
    """Without the mask where it is needless: causal kernels are faster without.

    That is where nothing is padded on the left, the model does not count positions by the mask, and
    no token sees later ones, which may be padding.
    """
    mask_BL = encoded.inputs["attention_mask"]
    row = mlm.family
    if row.sees_ahead or not row.positions_from_mask or not bool(mask_BL[:, 0].all()):
        return encoded.inputs
    return {name: x for name, x in encoded.inputs.items() if name != "attention_mask"}


def logits_at(mlm: Mlm, hidden_BLC: Tensor, rows_N: Tensor) -> Tensor:
    """Next-word logits_NW, in the model's dtype, at flat positions b * L + l; the head runs once.

    There must be one row at least, or ranks would wait for each other at the head. All B * L rows
    of a vocabulary of 150,000 would be gigabytes.
    """
    if not len(rows_N):
        raise ValueError("expected at least one position, found none")
    return mlm.logits(hidden_BLC.flatten(0, 1).index_select(0, rows_N.to(hidden_BLC.device)))


@contextmanager
def _adapter_off(mlm: Mlm) -> Iterator[None]:
    """PEFT's switch, which on the way back makes the adapter trainable: undo that if it was not."""
    asked = [(p, p.requires_grad) for p in mlm.model.parameters()]
    try:
        with mlm.model.disable_adapter():
            yield
    finally:
        for parameter, wanted in asked:
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off: the anchor is the base model, not a noisy one."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
