"""Attention edges from queries to image keys: which ones an edit names, and what it adds to them.

An edge is one logit: query position i, key position j, one head of one layer. An edit adds a
number to the logits of its edges: -inf blocks them, log(s) multiplies their weights by s before the
softmax normalises. Nothing here knows a model; `kvfix.mlm.intervene` applies it.

A query's own key is never an edge, here: so no query can lose all its keys. Where a model attends
to earlier positions only, image -> image edits change LATER positions only.

Shapes: B samples, L positions of the encoded batch, Q queries and K keys of a pass, R query rows
    that change, V image tokens of one image, S layers of the model, H KV heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from kvfix.mlm.image_keys import Keys, place_keys
from kvfix.mlm.prompts import Encoded

Queries = Literal["text", "image"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of the attention from some queries to some image keys.

    Exactly one of `scale` and `bias_SH` is given. Edits of one edge add up: scales multiply, and a
    blocked edge stays blocked.
    """

    # "text": the tokens after a sample's LAST image, and all that is generated (what stands between
    # two images is left alone, as the later image reads it). "image": all image tokens.
    queries: Queries
    # Which image keys (see `kvfix.mlm.image_keys`); None is every image token.
    keys: Keys | None = None
    # Factor of the attention weight before normalisation, 0..1; 0 blocks, 1 changes nothing.
    scale: float | None = None
    # Nats added to the logits of each layer and KV head; it may ask for a gradient. One that does
    # not is read when the block is entered.
    bias_SH: Tensor | None = None
    layers: Sequence[int] | None = None  # 0-based decoder layers; None is all
    heads: Sequence[int] | None = None  # KV heads; None is all

    def __post_init__(self) -> None:
        if self.queries not in get_args(Queries):
            raise ValueError(f"expected queries 'text' or 'image', found {self.queries!r}")
        if (self.scale is None) == (self.bias_SH is None):
            found = "neither" if self.scale is None else "both"
            raise ValueError(f"expected either scale or bias_SH, found {found}")
        if self.scale is not None and not 0 <= self.scale <= 1:
            raise ValueError(f"expected scale in 0..1, found {self.scale}")


class Change(NamedTuple):
    """What one edit adds at one head: `amounts_SH[layer, head]`, read when used, at `keys_BL`."""

    keys_BL: Tensor
    amounts_SH: Tensor
    layer: int
    head: int

    @property
    def amount(self) -> Tensor:
        """Nats, 0-d; inside autograd if the bias asks for it."""
        return self.amounts_SH[self.layer, self.head]

    @property
    def signature(self) -> tuple[bytes, float | tuple[int, int, int]]:
        """Equal for changes that will always be the same."""
        learned = self.amounts_SH.requires_grad
        what = (id(self.amounts_SH), self.layer, self.head) if learned else float(self.amount)
        return self.keys_BL.numpy().tobytes(), what


class Rows(NamedTuple):
    """Query rows of a pass."""

    index_R: Tensor  # rows that change in at least one sample
    changed_BR: Tensor  # in which samples


class Sight(NamedTuple):
    """What the queries of one layer see; padding aside, which nothing sees."""

    first_BL: Tensor  # the first position that each encoded position sees
    last_BL: Tensor  # the last one
    # Positions that what is generated looks back on, its own included; None for all.
    window: int | None

    def counted(self, keys_BL: Tensor, start: int, count: int) -> Tensor:
        """counts_BQ: how many of some keys the queries at start, ..., start + count - 1 see.

        Their own is left out. `start` may be past the encoded positions, at which `keys_BL` stand:
        what is generated sees what is before it.
        """
        batch, length = keys_BL.shape
        at_Q = torch.arange(start, start + count)
        inside_Q = at_Q.clamp(max=length - 1)
        last_BQ = torch.where(at_Q < length, self.last_BL[:, inside_Q], length - 1)
        back_Q = at_Q * 0 if self.window is None else (at_Q - self.window + 1).clamp(0, length)
        first_BQ = torch.where(at_Q < length, self.first_BL[:, inside_Q], back_Q)
        own_BQ = keys_BL[:, inside_Q] & (at_Q < length)
        before_BL = torch.cat((keys_BL.new_zeros(batch, 1), keys_BL), dim=1).long().cumsum(-1)
        seen_BQ = before_BL.gather(1, last_BQ + 1) - before_BL.gather(1, first_BQ)
        return seen_BQ - own_BQ.long()


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """KV heads of one layer whose edges change alike: one mask serves them all."""

    heads: tuple[int, ...]  # KV heads
    queries_BL: Tensor  # encoded positions that are such queries
    generated: bool  # whether later positions are, too
    first_B: Tensor  # position of each sample's first changed key; past the end where it has none
    changes: tuple[Change, ...]  # what is added
    sight: Sight | None = None  # which keys the queries see; None: all earlier ones

    def rows(self, start: int, count: int) -> Rows:
        """Which of the queries at positions start, ..., start + count - 1 have a changed edge."""
        inside_BQ = self.queries_BL[:, start : start + count]
        inside_BQ = F.pad(inside_BQ, (0, count - inside_BQ.shape[1]), value=self.generated)
        if self.sight is None:
            changed_BQ = inside_BQ & (torch.arange(start, start + count) > self.first_B[:, None])
        else:
            keys_BL = _together(self.changes)
            changed_BQ = inside_BQ & (self.sight.counted(keys_BL, start, count) > 0)
        index_R = changed_BQ.any(0).nonzero().flatten()
        return Rows(index_R, changed_BQ[:, index_R])

    def mask(
        self, at_R: Tensor, n_keys: int, given_B1RK: Tensor | None, *, dtype: torch.dtype
    ) -> Tensor:
        """The rows' whole additive mask_B1RK: causality, padding and the changes.

        `at_R` are the rows' positions, on the mask's device; the K keys are at 0..K-1. The given
        mask is the one that the model would have used, boolean (True attends) or additive; None is
        causality alone. SDPA wants the queries' dtype: bfloat16 rounds an amount a by up to |a| /
        512, and so its weight's factor by as much.
        """
        keys_K = torch.arange(n_keys, device=at_R.device)
        if given_B1RK is None:
            given_B1RK = (keys_K <= at_R[:, None])[None, None]
        if given_B1RK.dtype == torch.bool:
            allowed = given_B1RK
            given_B1RK = torch.zeros(allowed.shape, dtype=dtype, device=at_R.device)
            given_B1RK.masked_fill_(~allowed, -torch.inf)
        added_BK = self._added(n_keys, at_R.device).to(dtype)
        mask_B1RK = given_B1RK + added_BK[:, None, None]
        # Also keeps the rows finite that are padding in some samples and discarded there.
        return mask_B1RK.masked_fill_(keys_K == at_R[:, None], 0)

    def _added(self, n_keys: int, device: torch.device) -> Tensor:
        length = self.queries_BL.shape[1]
        added_BL = torch.zeros(self.queries_BL.shape, device=device)
        for change in self.changes:
            amount = change.amount.to(device, torch.float32)
            added_BL = added_BL + torch.where(change.keys_BL.to(device), amount, 0.0)
        return F.pad(added_BL, (0, n_keys - length))  # cuts where fewer keys are there yet


def resolve(
    edits: Sequence[Edit],
    encoded: Encoded,
    *,
    n_layers: int,
    n_kv_heads: int,
    sight: Callable[[int], Sight | None] = lambda layer: None,
) -> dict[int, tuple[HeadGroup, ...]]:
    """What changes in each of S layers of H KV heads; a layer in which no edit changes a logit is
    absent.

    That is one with no key chosen, scale 1, or a bias of zero that asks for no gradient. For
    `sight` see `kvfix.mlm.intervene.sight_of`. An edit that does not fit the batch or the model is
    a ValueError.
    """
    queries_BL = _queries(encoded)
    changes: dict[tuple[int, Queries, int], list[Change]] = {}
    for edit in edits:
        keys_SHBL = place_keys(edit.keys, encoded, n_layers=n_layers, n_kv_heads=n_kv_heads)
        amounts_SH = _amounts(edit, n_layers, n_kv_heads)
        for layer in _chosen("layers", edit.layers, n_layers):
            for head in _chosen("heads", edit.heads, n_kv_heads):
                change = Change(keys_SHBL[layer, head].contiguous(), amounts_SH, layer, head)
                if change.keys_BL.any() and (amounts_SH.requires_grad or change.amount != 0):
                    changes.setdefault((layer, edit.queries, head), []).append(change)
    groups: dict[int, list[HeadGroup]] = {}
    for (layer, queries), heads in _alike(changes).items():
        groups.setdefault(layer, []).extend(
            _group(of, queries_BL[queries], queries == "text", sight(layer)) for of in heads
        )
    return {layer: tuple(groups[layer]) for layer in sorted(groups)}


def _queries(encoded: Encoded) -> dict[Queries, Tensor]:
    real_BL = encoded.inputs["attention_mask"].cpu().bool()
    image_BL = torch.zeros_like(real_BL)
    text_BL = real_BL.clone()
    for sample, spans in enumerate(encoded.images):
        at = torch.cat([span.positions_V for span in spans])
        image_BL[sample, at] = True
        text_BL[sample, : int(at.max()) + 1] = False
    return {"text": text_BL, "image": image_BL}


def _amounts(edit: Edit, n_layers: int, n_kv_heads: int) -> Tensor:
    if edit.bias_SH is None:
        assert edit.scale is not None
        return torch.full((n_layers, n_kv_heads), edit.scale).log()
    bias_SH = edit.bias_SH
    if bias_SH.shape != (n_layers, n_kv_heads) or not bias_SH.is_floating_point():
        raise ValueError(
            f"expected a floating bias_SH over all layers and KV heads, ({n_layers}, {n_kv_heads}),"
            f" found {bias_SH.dtype} {tuple(bias_SH.shape)}"
        )
    if bool((bias_SH.isnan() | bias_SH.isposinf()).any()):
        raise ValueError("expected finite numbers or -inf in bias_SH, found NaN or +inf")
    return bias_SH if bias_SH.requires_grad else bias_SH.detach().cpu().clone()


def _chosen(name: str, asked: Sequence[int] | None, count: int) -> Sequence[int]:
    if asked is None:
        return range(count)
    wrong = [number for number in asked if not 0 <= number < count]
    if wrong or len(set(asked)) != len(asked):
        found = wrong or f"repetitions in {list(asked)}"
        raise ValueError(f"expected {name} out of 0..{count - 1}, each once, found {found}")
    return asked


def _alike(
    changes: dict[tuple[int, Queries, int], list[Change]],
) -> dict[tuple[int, Queries], list[dict[int, list[Change]]]]:
    """Heads of a layer and kind of query, those with equal changes together."""
    sorted_by: dict[tuple[int, Queries], dict[object, dict[int, list[Change]]]] = {}
    for (layer, queries, head), of_head in changes.items():
        same = sorted_by.setdefault((layer, queries), {})
        same.setdefault(tuple(change.signature for change in of_head), {})[head] = of_head
    return {at: list(same.values()) for at, same in sorted_by.items()}


def _group(
    heads: dict[int, list[Change]], queries_BL: Tensor, generated: bool, sight: Sight | None
) -> HeadGroup:
    changes = next(iter(heads.values()))
    keys_BL = _together(changes)
    none_B = ~keys_BL.any(-1)
    first_B = keys_BL.int().argmax(-1).masked_fill(none_B, torch.iinfo(torch.int64).max)
    return HeadGroup(tuple(heads), queries_BL, generated, first_B, tuple(changes), sight)


def _together(changes: Sequence[Change]) -> Tensor:
    return torch.stack([change.keys_BL for change in changes]).any(0)
