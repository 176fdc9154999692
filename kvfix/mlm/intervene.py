"""Change attention edges from chosen queries to chosen image keys, while a block is open.

    none = Edit("text", keys, scale=0.0, layers=range(12, 24))
    with intervene(mlm, encoded, [none]):
        mlm.model.generate(**encoded.inputs, max_new_tokens=8)

How. The usual way is a hook that hands each attention layer a changed mask. It has two faults.
Under SDPA an unpadded batch runs without a mask; giving one picks another kernel, so rows that
nobody wanted to change differ in their last bits, and "nothing but these edges was changed" cannot
be shown. And the mask covers all rows: at 8,000 tokens one mask a head and layer is 128 MB in
bfloat16. So here the layer first attends as it always does, same arguments and same kernel; then
the rows that have a changed edge, and of those only the changed heads, are computed once more by
the same function with a mask, and written over. Rows and heads that are not meant stay as they are
to the last bit; a layer without a change is not touched at all; and masks are B x rows x keys, one
at a time for each set of heads that change alike (where gradients are on, backward keeps them).

`AttentionInterface` is where transformers lets a function of one's own attend. Only the attention
modules that change see it: their config is replaced by a copy that names it. The model's own
config, by which masks are made, stays.

Shapes: B samples, Q queries and K keys of a pass, R rows that change, H query heads, G of them that
    change, D head channels.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache

from kvfix.mlm.edges import Edit, HeadGroup, Rows, Sight, resolve
from kvfix.mlm.image_keys import Keys, on_tokens, random_keys
from kvfix.mlm.language_models import sliding_window
from kvfix.mlm.load import Encoded, Mlm
from kvfix.mlm.renamed import cache_of

__all__ = ["Edit", "Keys", "intervene", "on_tokens", "random_keys"]

_NAME = "kvfix_edited"
_KINDS = ("sdpa", "eager")


@contextmanager
def intervene(mlm: Mlm, encoded: Encoded, edits: Sequence[Edit]) -> Iterator[None]:
    """Inside the block, passes over the encoded batch attend with these edits.

    Prefill, decoding with a `DynamicCache`, teacher-forced passes over longer sequences (what is
    past the encoded batch is text), left and right padding, LoRA and gradient checkpointing work;
    with checkpointing, call `backward` inside the block, as layers run again there. If no edit
    changes a logit, nothing at all is installed.

    Attention is "sdpa" or "eager". Refused are a layer that another open block has, and inside the
    block another batch (beams multiply it, too), or a cache whose keys are not at their positions
    (static or sliding).
    """
    planned = resolve(
        edits,
        encoded,
        n_layers=mlm.n_layers,
        n_kv_heads=mlm.n_kv_heads,
        sight=lambda layer: sight_of(mlm, encoded, layer),
    )
    with ExitStack() as stack:
        if planned:
            guard = mlm.base.model.register_forward_pre_hook(_guard(encoded), with_kwargs=True)
            stack.callback(guard.remove)
        for layer, groups in planned.items():
            stack.enter_context(_edited(mlm.layer(layer).self_attn, groups))
        yield


def sight_of(mlm: Mlm, encoded: Encoded, layer: int) -> Sight | None:
    """What a layer's queries see; None for all earlier positions, as in most models."""
    sees_ahead, window = mlm.family.sees_ahead, sliding_window(mlm.config.text_config, layer)
    real_BL = encoded.inputs["attention_mask"].cpu().bool()
    batch, length = real_BL.shape
    if not sees_ahead and (window is None or window >= length):
        return None
    last_BL = torch.arange(length).expand(batch, -1).clone()
    first_BL = torch.zeros_like(last_BL) if window is None else (last_BL - window + 1).clamp(min=0)
    for sample, spans in enumerate(encoded.images):
        if sees_ahead == "image":
            for span in spans:
                last_BL[sample, span.positions_V] = span.positions_V.max()
        elif sees_ahead == "prompt":  # whatever the window
            prompt_L = real_BL[sample] & (encoded.inputs["token_type_ids"][sample] == 0).cpu()
            last_BL[sample, prompt_L] = prompt_L.nonzero().max()
            first_BL[sample, prompt_L] = 0
    return Sight(first_BL, last_BL, window)


@dataclass(frozen=True)
class _Edges:
    """What travels to the attention function: how the layer attends, and what to change."""

    attend: Callable[..., tuple[Tensor, Tensor | None]]
    groups: tuple[HeadGroup, ...]


@contextmanager
def _edited(attention: nn.Module, groups: tuple[HeadGroup, ...]) -> Iterator[None]:
    """One attention module, attending by `_attend_edited`."""
    kept: Any = attention.config
    edges = _Edges(_attend_of(attention), groups)
    config = copy.copy(kept)
    config._attn_implementation = _NAME
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "kvfix_edges": edges}), with_kwargs=True
    )
    attention.config = config
    try:
        yield
    finally:
        attention.config = kept
        handle.remove()


def _attend_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that the module attends with; eager ones are each model's own."""
    config: Any = attention.config
    kind = config._attn_implementation
    if kind == _NAME:
        raise ValueError(
            "expected a layer that no other open intervene() block changes, found one that does; "
            "give all edits to one block"
        )
    if kind not in _KINDS:
        raise ValueError(
            f"expected a language model under {' or '.join(_KINDS)}, as edits change attention "
            f"logits, found {kind!r}; load it with attn='sdpa'"
        )
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    return AttentionInterface().get_interface(kind, eager)


def _attend_edited(
    module: nn.Module,
    query_BHQD: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kvfix_edges: _Edges,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as ever, then once more for the rows and heads that change."""
    attend = kvfix_edges.attend
    output_BQHD, weights_BHQK = attend(module, query_BHQD, key, value, attention_mask, **kwargs)
    count, n_keys = query_BHQD.shape[2], key.shape[2]
    changes = [(group, group.rows(n_keys - count, count)) for group in kvfix_edges.groups]
    changes = [(group, rows) for group, rows in changes if len(rows.index_R)]
    if not changes:
        return output_BQHD, weights_BHQK
    device, shared = query_BHQD.device, query_BHQD.shape[1] // key.shape[1]
    # Copies: what autograd keeps of the first attention must not be written over.
    output_BQHD = output_BQHD.clone()
    weights_BQHK = None if weights_BHQK is None else weights_BHQK.transpose(1, 2).clone()
    for group, rows in changes:
        rows = Rows(*(x.to(device) for x in rows))
        kv_heads = torch.tensor(group.heads, device=device)
        # Query head h reads KV head h // shared.
        heads_G = (kv_heads[:, None] * shared + torch.arange(shared, device=device)).flatten()
        given = None if attention_mask is None else attention_mask[:, :, rows.index_R]
        mask_B1RK = group.mask(
            rows.index_R + (n_keys - count), n_keys, given, dtype=query_BHQD.dtype
        )
        new_BRGD, new_BGRK = attend(
            module,
            query_BHQD.index_select(1, heads_G).index_select(2, rows.index_R),
            key.index_select(1, kv_heads),
            value.index_select(1, kv_heads),
            mask_B1RK,
            **kwargs,
        )
        _write(output_BQHD, new_BRGD, rows, heads_G)
        if weights_BQHK is not None and new_BGRK is not None:
            _write(weights_BQHK, new_BGRK.transpose(1, 2), rows, heads_G)
    return output_BQHD, None if weights_BQHK is None else weights_BQHK.transpose(1, 2)


AttentionInterface.register(_NAME, _attend_edited)


def _write(into_BQHX: Tensor, new_BRGX: Tensor, rows: Rows, heads_G: Tensor) -> None:
    """Put the changed rows of these heads in place; other samples keep theirs."""
    at = (slice(None), rows.index_R[:, None], heads_G)
    into_BQHX[at] = torch.where(rows.changed_BR[:, :, None, None], new_BRGX, into_BQHX[at])


def _guard(encoded: Encoded) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """Hook of the base model: positions mean something in this batch and such a cache only."""
    ids_BL = encoded.inputs["input_ids"]

    def check(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = cache_of(kwargs)
        if cache is not None and (not isinstance(cache, DynamicCache) or any(cache.is_sliding)):
            sliding = " with a sliding window" if any(cache.is_sliding) else ""
            raise ValueError(
                "expected a DynamicCache, whose key i is position i, found "
                f"{type(cache).__name__}{sliding}; generate without cache_implementation"
            )
        past = 0 if cache is None else cache.get_seq_length()
        given = kwargs.get("input_ids", args[0] if args else None)
        expected = ids_BL[:, past:]
        if given is None or len(given) != len(ids_BL):
            found = None if given is None else tuple(given.shape)
            raise ValueError(
                f"expected input_ids of the encoded batch, {tuple(ids_BL.shape)}, found {found}; "
                "beams and several answers a prompt need a batch encoded so"
            )
        both = min(given.shape[1], expected.shape[1])
        if not torch.equal(given[:, :both].to(ids_BL.device), expected[:, :both]):
            raise ValueError(
                "expected the encoded batch, found other input_ids; its image tokens may be "
                "elsewhere: open the block with the batch that is run"
            )

    return check
