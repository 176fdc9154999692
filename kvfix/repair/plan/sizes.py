"""How many bytes and tokens a model and its samples take, each counted by itself.

A new family adds nothing here: its row of `kvfix.mlm.families` says how its images are laid out,
which arguments its vision tower takes, and how wide its patches are. Extend this file where what is
stored differs, as another quantisation does, or where captured features do.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import nn

from kvfix.checkpoint.quantised import Quantised, abilities, estimated_bytes
from kvfix.eval.probes.score import MEMORY_ELEMENTS
from kvfix.eval.source import TOKEN_BUDGET
from kvfix.mlm.images.shapes import PixelLimits
from kvfix.mlm.layout import Layout, LayoutRequest
from kvfix.mlm.load import Mlm

_BLOCK, _NESTED = 64, 256  # weights a scale, scales a scale of scales (bitsandbytes nf4)
_CODES = 4 * (16 + 256) + 4  # the two code books and the offset of one nf4 weight, float32


class WeightBytes(NamedTuple):
    """Bytes of all frozen weights."""

    plain: int  # in the model's data type
    nf4: int  # with the language model's linear layers quantised
    largest_unpacked: int  # of the largest quantised weight, which a pass unpacks

    def of(self, quant: str | None) -> int:
        """Stored."""
        return self.nf4 if quant == "nf4" else self.plain

    def unpacked(self, quant: str | None) -> int:
        """Held for a moment while a layer runs."""
        return self.largest_unpacked if quant == "nf4" else 0


def weight_bytes(mlm: Mlm) -> WeightBytes:
    """Of a model without an adapter; `load_mlm(quant="nf4")` says which layers are quantised."""
    plain = sum(x.nbytes for x in (*mlm.base.parameters(), *mlm.base.buffers()))
    linear = [m.weight for m in mlm.lm.modules() if isinstance(m, nn.Linear)]
    saved = sum(w.nbytes - nf4_bytes(w.numel()) for w in linear)
    return WeightBytes(plain, plain - saved, max(w.nbytes for w in linear))


def as_stored(
    already: Quantised, mlm: Mlm, bare: WeightBytes, stored: int | None, *, name: str
) -> WeightBytes:
    """Of a checkpoint that is quantised on disk; one that cannot be trained is refused."""
    if stored is None and already.bits is not None:
        stored = estimated_bytes(already, mlm.base, nf4_bytes)
    size = "" if stored is None else f"; its weights take {stored / 2**30:.2f} GiB"
    if not already.trains or stored is None:
        raise ValueError(f"{name}: {abilities(already)}{size}")
    return WeightBytes(bare.plain, stored, bare.largest_unpacked)


def nf4_bytes(numel: int) -> int:
    """Of one weight in nf4 with double quantisation (bitsandbytes): half a byte a number, a byte a
    block of 64, four a block of 256 of these, and two code books.
    """
    blocks = math.ceil(numel / _BLOCK)
    return math.ceil(numel / 2) + blocks + 4 * math.ceil(blocks / _NESTED) + _CODES


def lay_out(mlm: Mlm, sizes: Any, limits: PixelLimits) -> list[Layout]:
    """Layouts of one sample's images from their sizes alone."""
    grids = grids_of(mlm, sizes, limits)
    return mlm.family.layouts(LayoutRequest(list(sizes), mlm.config, mlm.processor, grids))


def grids_of(mlm: Mlm, sizes: Any, limits: PixelLimits) -> Any:
    if mlm.family.grids is not None:
        return mlm.family.grids(sizes, mlm.config, mlm.processor, limits)
    if limits != PixelLimits():
        raise ValueError(
            f"expected no pixel limits for {mlm.family.model_type}, whose tiles are in its config, "
            f"found {limits.least} to {limits.most}"
        )
    return None


CLIP_FRAMES = 8  # whose features a probe of a clip holds between passes: the first, the last seven
PROBE_TENSORS = 3  # of at most MEMORY_ELEMENTS float32, alive together while a probe computes


def feature_bytes(mlm: Mlm, layouts: list[Layout]) -> int:
    """Captured features of one sample at every site and layer.

    Twice in the model's data type (kept by hooks, then on the grid), and once in float32, in which
    probes compute.
    """
    return _features(mlm, layouts) * (2 * mlm.dtype.itemsize + 4)


def image_bytes(mlm: Mlm, layout: Layout) -> int:
    """Features of one image at every site and layer, as probes hold them."""
    return _features(mlm, [layout]) * mlm.dtype.itemsize


def images_a_pass(layout: Layout) -> int:
    """How many images of this size a forward pass of a probe holds."""
    return max(1, TOKEN_BUDGET // layout.n_tokens)


def probe_bytes(mlm: Mlm, layout: Layout) -> int:
    """What the flow diagnosis holds of a clip or of fewer images, beside weights and a pass.

    Frames of before, and those of the pass twice: as hooks keep them, and on the grid. It does not
    grow with the number of units, nor of frames.
    """
    images = CLIP_FRAMES + 2 * images_a_pass(layout)
    return images * image_bytes(mlm, layout) + PROBE_TENSORS * 4 * MEMORY_ELEMENTS


def _features(mlm: Mlm, layouts: list[Layout]) -> int:
    """Numbers at every site and layer."""
    text, config = mlm.config.text_config, mlm.config
    lm_channels = mlm.n_layers * (text.hidden_size + 2 * mlm.n_kv_heads * mlm.head_dim)
    merged = mlm.family.vision_channels(config)
    cells = sum(layout.index_HW.numel() for layout in layouts)
    return cells * (lm_channels + merged + text.hidden_size)
