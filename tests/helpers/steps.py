"""One training step of a tiny model as a trainer would make it, for tests of the loss terms."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import tiny
import torch
from torch import Tensor

from kvfix.eval.mcq.readouts import Images, Points
from kvfix.mlm.capture import Capture
from kvfix.mlm.load import Mlm, Prompt, load_mlm
from kvfix.repair.base_pass import logits_at, run_base
from kvfix.repair.extras import Choice, Extras, MaskTarget, Matches, ReadableQuestion
from kvfix.repair.lora import LoraOptions, attach
from kvfix.repair.queries import QueryKeys, key_biases, text_queries
from kvfix.repair.step import Rows, Step, StepKeys
from kvfix.repair.terms.losses import Heads, Losses
from kvfix.repair.terms.mean import Mean

IMAGE_HW = (60, 100)
LAYER = 1
VALUE_TERMS = ("mask", "text_value", "correspondence", "evidence", "gram")
LAYER_TERMS = (*VALUE_TERMS, "dependence", "mass")


def tuned(
    folder: Any,
    *,
    spread: float = 0.02,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    **options: Any,
) -> Mlm:
    """A tiny model with LoRA; `lora_B` off zero, so that `lora_A` has a gradient, too."""
    plain = load_mlm(str(folder), dtype=dtype or "auto", device=device)
    mlm = attach(plain, LoraOptions(rank=2, **options)).mlm
    generator = torch.Generator().manual_seed(0)
    for name, parameter in mlm.model.named_parameters():
        if "lora_B" in name:
            drawn = torch.empty(parameter.shape).normal_(std=spread, generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)
    return mlm


def prompts(count: int = 2, *, images: int = 2) -> list[Prompt]:
    """Equal sizes, different photos and texts."""
    return [
        Prompt(
            tuple(tiny.photo(*IMAGE_HW, seed=10 * n + i) for i in range(images)),
            ("a cat", "dogs?", "the third")[n],
        )
        for n in range(count)
    ]


def extras(mlm: Mlm, given: Sequence[Prompt]) -> list[Extras]:
    """A mask, two matched points and a question for each sample."""
    encoded = mlm.encode(given)
    out = []
    for n, spans in enumerate(encoded.images):
        rows, cols = spans[0].layout.grid_hw
        generator = torch.Generator().manual_seed(n)
        share = torch.rand(rows, cols, generator=generator)
        points = torch.rand(2, 2, generator=generator) * torch.tensor([rows - 1.0, cols - 1.0])
        matches = ()
        if len(spans) > 1:
            matches = (Matches((0, 1), (points, points.flip(0)), torch.tensor([True, n == 0])),)
        out.append(
            Extras(
                masks=(MaskTarget(0, share, torch.ones(rows, cols), named=True),),
                matches=matches,
                choice=Choice(n, torch.tensor([5, 6, 7])),
                readable=readable(rows, cols, count=len(spans)),
            )
        )
    return out


def readable(rows: int, cols: int, *, count: int) -> ReadableQuestion:
    """Three options: points of the second image, or images after the first."""
    if count == 2:
        at = np.random.default_rng(0).uniform(1, min(IMAGE_HW) - 1, (4, 2))
        return ReadableQuestion("Visual_Correspondence", Points(at[:1], at[1:], False))
    return ReadableQuestion("Visual_Similarity", Images((0, 0, 0)))


def agnostic(mlm: Mlm, given: Sequence[Prompt]) -> Tensor:
    """Some keys of every layer and head at the prompts' resolution."""
    tokens = mlm.encode(given[:1]).images[0][0].layout.n_tokens
    generator = torch.Generator().manual_seed(0)
    return torch.rand(mlm.n_layers, mlm.n_kv_heads, tokens, generator=generator) < 0.4


def make_step(
    mlm: Mlm,
    losses: Losses,
    given: Sequence[Prompt],
    knows: Sequence[Extras],
    *,
    earlier: StepKeys | None = None,
    grad: bool = True,
) -> Step:
    """Run what the losses need, base first, and hand it over."""
    needs = losses.needs()
    encoded = mlm.encode(given)
    layers = tuple(sorted(needs.layers))
    length = encoded.inputs["input_ids"].shape[1]
    # The last row of each sample first: there `Choice.row` n is sample n's.
    last = torch.tensor([(n + 1) * length - 1 for n in range(len(given))])
    text = torch.cat([n * length + at[:-1] for n, at in enumerate(text_queries(encoded))])
    rows_N = torch.cat((last, text))
    base = None
    if needs.base_sites or needs.base_rows:
        base = run_base(mlm, encoded, rows_N=rows_N, sites=needs.base_sites, layers=layers or None)
    with ExitStack() as stack:
        capture = reader = None
        if needs.sites:
            capture = stack.enter_context(
                Capture(mlm, encoded, sites=needs.sites, layers=layers, grad=grad, text=needs.text)
            )
        if needs.attention:
            reader = stack.enter_context(QueryKeys(mlm, encoded, layers=sorted(needs.attention)))
        hidden = mlm.base.model(**encoded.inputs, use_cache=False).last_hidden_state
        answer = torch.arange(len(rows_N)) < len(last)
        rows = Rows(
            logits_at(mlm, hidden, rows_N),
            None if base is None else base.logits_NW,
            answer,
            ~answer,
        )
        return Step(
            encoded=encoded,
            features=[] if capture is None else capture.collect(),
            layers=layers,
            extras=knows,
            base=None if base is None else base.features,
            rows=rows,
            attention={} if reader is None else reader.collect(),
            agnostic_SHV=agnostic(mlm, given) if needs.agnostic else None,
            key_bias=key_biases(mlm, layers),
            earlier=earlier or StepKeys(),
        )


def only(*names: str, **changed: Any) -> Losses:
    """These terms alone, of weight 1, reading LAYER."""
    losses = Losses()
    for name in names:
        term = getattr(losses, name)
        at = {"layers": (LAYER,)} if name in LAYER_TERMS else {}
        losses = replace(losses, **{name: replace(term, weight=1.0, **at, **changed)})
    return losses


def mean_of(name: str, losses: Losses, step: Step, heads: Heads) -> Mean:
    """One term of a step."""
    return losses.active()[name].loss(step, heads[name])


def heads_of(mlm: Mlm, losses: Losses) -> Heads:
    """The heads of the active terms."""
    return Heads(losses, channels=mlm.n_kv_heads * mlm.head_dim, seed=0)
