"""Sets of image keys: by layer and KV head, for one image or each image of a batch.

A set is boolean, True at a chosen key: (V,) for all layers and heads, or (S, H, V) over the model's
layers and KV heads. One such tensor stands for every image (of V tokens each); for images of
several sizes give a list a sample of one tensor an image.

Shapes: B samples, L positions of the encoded batch, V tokens of one image in sequence order (base
    tile and newlines included), S layers of the model, H KV heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvfix.mlm.layout import Layout
from kvfix.mlm.prompts import Encoded, ImageSpan

Keys = Tensor | Sequence[Sequence[Tensor]]


def random_keys(keys: Keys, generator: torch.Generator, *, among: Tensor | None = None) -> Keys:
    """Control: as many keys a layer and head (and image), drawn without repetition, in the same
    form.

    `among` are the image's positions to draw from, boolean (V,); None is all.
    """
    if not isinstance(keys, Tensor):
        return [[_draw(of, generator, among) for of in sample] for sample in keys]
    return _draw(keys, generator, among)


def on_tokens(cells: Tensor, layout: Layout) -> Tensor:
    """A boolean map (..., rows, columns) on an image's grid, as keys (..., V) of its tokens.

    Tokens that hold no cell (newlines, the base tile of a mosaic) are False.
    """
    if cells.shape[-2:] != layout.index_HW.shape:
        raise ValueError(
            f"expected a map on the image's grid of {layout.grid_hw} rows and columns, found shape "
            f"{tuple(cells.shape)}"
        )
    keys = torch.zeros(*cells.shape[:-2], layout.n_tokens, dtype=torch.bool)
    keys[..., layout.index_HW.flatten()] = cells.flatten(-2).cpu()
    return keys


def place_keys(keys: Keys | None, encoded: Encoded, *, n_layers: int, n_kv_heads: int) -> Tensor:
    """keys_SHBL at their positions in the batch, on the CPU; a view, not to be written to."""
    images = encoded.images
    if keys is not None and not isinstance(keys, Tensor):
        counts = [len(of) for of in keys]
        if counts != [len(spans) for spans in images]:
            raise ValueError(
                f"expected keys for each sample's images, {[len(spans) for spans in images]} of "
                f"them, found {counts}"
            )
    ids_BL = encoded.inputs["input_ids"]
    keys_SHBL = torch.zeros(1, 1, *ids_BL.shape, dtype=torch.bool)
    for sample, spans in enumerate(images):
        for image, span in enumerate(spans):
            given = keys if keys is None or isinstance(keys, Tensor) else keys[sample][image]
            of_SHV = _image_keys(given, span, n_layers, n_kv_heads, f"sample {sample}")
            if of_SHV.shape[:2].numel() > keys_SHBL.shape[:2].numel():
                keys_SHBL = keys_SHBL.expand(n_layers, n_kv_heads, -1, -1).clone()
            keys_SHBL[:, :, sample, span.positions_V] = of_SHV
    return keys_SHBL.expand(n_layers, n_kv_heads, -1, -1)


def _image_keys(
    keys: Tensor | None, span: ImageSpan, n_layers: int, n_kv_heads: int, where: str
) -> Tensor:
    """Keys of one image, (S, H, V) or (1, 1, V)."""
    tokens = len(span.positions_V)
    if keys is None:
        return torch.ones(1, 1, tokens, dtype=torch.bool)
    if keys.dtype != torch.bool or keys.shape not in ((tokens,), (n_layers, n_kv_heads, tokens)):
        raise ValueError(
            f"{where}: expected boolean keys of shape ({tokens},) or "
            f"({n_layers}, {n_kv_heads}, {tokens}) for an image of {tokens} tokens, found "
            f"{keys.dtype} {tuple(keys.shape)}; images of several sizes take a list of tensors"
        )
    return keys.cpu() if keys.ndim == 3 else keys.cpu()[None, None]


def _draw(keys: Tensor, generator: torch.Generator, among: Tensor | None) -> Tensor:
    count = keys.sum(-1, keepdim=True)
    room = keys.shape[-1] if among is None else int(among.sum())
    if int(count.max()) > room:
        raise ValueError(
            f"expected at most as many keys as positions to draw from, {room}, found "
            f"{int(count.max())}"
        )
    order = torch.rand(keys.shape, generator=generator)
    if among is not None:
        order = order.masked_fill(~among.cpu(), torch.inf)
    rank = order.argsort(-1).argsort(-1)
    return (rank < count.cpu()).to(keys.device)
