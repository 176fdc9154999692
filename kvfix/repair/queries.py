"""Read queries of text and keys of the whole sequence in chosen layers, as the model attends.

`kvfix.mlm.capture` reads image tokens; attention needs every key. Memory: one [L, H * D] and one
[T, Q * D] a chosen layer and sample, no matrix of weights.

Shapes: B samples, L positions, T text queries of a sample, Q query heads, H KV heads, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from kvfix.mlm.capture import Hooks
from kvfix.mlm.language_models import Part, sliding_window
from kvfix.mlm.load import Encoded, Mlm


class Attention(NamedTuple):
    """What one layer attends with in one sample."""

    q_TQD: Tensor  # queries of the text after the last image, post-RoPE; none without an image
    k_LHD: Tensor  # keys of the whole padded sequence, post-RoPE
    at_T: Tensor  # positions of the queries
    real_L: Tensor  # bool, positions that are not padding
    scale: float  # factor of the logits


class QueryKeys(Hooks):
    """Reads queries and keys in ONE forward pass of one encoded batch.

    Gradients flow through what is collected; with gradient checkpointing (non-reentrant) layers run
    again in backward, and what the first run gave is kept.
    """

    def __init__(self, mlm: Mlm, encoded: Encoded, *, layers: Sequence[int]):
        """Say which 0-based decoder layers to read; a sliding window must span the batch."""
        super().__init__()
        wrong = [layer for layer in layers if not 0 <= layer < mlm.n_layers]
        if wrong:
            raise ValueError(f"expected layers 0..{mlm.n_layers - 1}, found {wrong}")
        self.mlm, self.encoded, self.layers = mlm, encoded, tuple(layers)
        self._real_BL = encoded.inputs["attention_mask"].bool()
        _check_attention(mlm, self.layers, self._real_BL.shape[1])
        self._at = text_queries(encoded)
        length = self._real_BL.shape[1]
        self._rows_N = torch.cat([at_T + b * length for b, at_T in enumerate(self._at)])

    def collect(self) -> dict[int, list[Attention]]:
        """Of each layer, one entry per sample; call it inside the block, after the pass."""
        if self.layers and ("cos", self.layers[0]) not in self._kept:
            raise ValueError("expected collect() after a forward pass inside the block, found none")
        return {layer: self._of(layer) for layer in self.layers}

    def _of(self, layer: int) -> list[Attention]:
        device, batch, width = self.mlm.device, len(self._at), self.mlm.head_dim
        q_NC, k_MC = (self._kept[part, layer].to(device) for part in ("query", "key"))
        if self.mlm.language_model.rotates(self.mlm.config.text_config, layer):
            cos_MD, sin_MD = (self._kept[part, layer].to(device) for part in ("cos", "sin"))
            rows_N, rotate = self._rows_N.to(device), self.mlm.language_model.rotate
            q_NC = rotate(q_NC[None], cos_MD[rows_N], sin_MD[rows_N], head_dim=width)[0]
            k_MC = rotate(k_MC[None], cos_MD, sin_MD, head_dim=width)[0]
        q_NQD = q_NC.unflatten(-1, (-1, width))
        k_BLHD = k_MC.view(batch, -1, k_MC.shape[1] // width, width)
        scale = self.mlm.layer(layer).self_attn.scaling
        queries = q_NQD.split([len(at_T) for at_T in self._at])
        return [
            Attention(q_TQD, k_LHD, at_T.to(device), real_L.to(device), scale)
            for q_TQD, k_LHD, at_T, real_L in zip(
                queries, k_BLHD, self._at, self._real_BL, strict=True
            )
        ]

    def _register(self) -> Iterable[Any]:
        for number in self.layers:
            yield self.mlm.layer(number).self_attn.register_forward_hook(
                self._rope_keeper(number), with_kwargs=True
            )
            yield self._hook("query", number, self._rows_N)
            yield self._hook("key", number, None)

    def _hook(self, part: Part, layer: int, rows_N: Tensor | None) -> Any:
        at = self.mlm.reading(layer, part)

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if (part, layer) not in self._kept:  # checkpointing runs layers again in backward
                x_MC = at.take(output).flatten(0, 1)
                self._kept[part, layer] = x_MC if rows_N is None else _rows(x_MC, rows_N)

        return at.module.register_forward_hook(hook)

    def _rope_keeper(self, layer: int) -> Callable[[nn.Module, Any, dict[str, Any], Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            for part, x_BLD in zip(("cos", "sin"), kwargs["position_embeddings"], strict=True):
                self._kept[part, layer] = x_BLD.expand(len(self._at), -1, -1).flatten(0, 1)

        return hook


def _rows(x_MC: Tensor, rows_N: Tensor) -> Tensor:
    """A copy that checkpointing does not count among what its layer saves: it runs only once."""
    with saved_tensors_hooks(lambda x: x, lambda x: x):
        return x_MC.index_select(0, rows_N.to(x_MC.device))


def text_queries(encoded: Encoded) -> list[Tensor]:
    """Positions of each sample's text after its last image, answers included; on the CPU."""
    real_BL = encoded.inputs["attention_mask"].cpu().bool()
    out = []
    for spans, real_L in zip(encoded.images, real_BL, strict=True):
        last = max((int(span.positions_V.max()) for span in spans), default=len(real_L))
        after = real_L & (torch.arange(len(real_L)) > last)
        out.append(after.nonzero().flatten())
    return out


def key_biases(mlm: Mlm, layers: Iterable[int]) -> dict[int, Tensor | None]:
    """What each layer adds to every key, None where nothing; copies, float32.

    A constant added to every key makes all of them look input-agnostic, so statistics subtract it.
    """
    biases = {layer: mlm.key_bias(layer) for layer in layers}
    for layer, bias in biases.items():
        if bias is not None and not bias.numel():
            raise ValueError(
                f"layer {layer}: expected the bias of k_proj, found a partitioned parameter; call "
                "key_biases inside deepspeed.zero.GatheredParameters"
            )
    return {
        layer: None if bias is None else bias.detach().float().clone()
        for layer, bias in biases.items()
    }


def _check_attention(mlm: Mlm, layers: Iterable[int], length: int) -> None:
    """Refuse attention that is more than a softmax of scaled products with all earlier keys."""
    text = mlm.config.text_config
    if mlm.family.sees_ahead == "prompt":
        raise ValueError(
            f"expected text that attends to earlier tokens alone, found {mlm.family.model_type}, "
            "whose prompts attend to later ones, too; leave out the attention-mass term"
        )
    windows = [sliding_window(text, layer) for layer in layers]
    least = min((window for window in windows if window is not None), default=None)
    if least is not None and least < length:
        raise ValueError(
            f"expected a language model that attends to all earlier tokens, found a sliding window "
            f"of {least} in a batch of {length}; leave out the attention-mass term, or choose "
            "layers that see all"
        )
    if getattr(text, "attn_logit_softcapping", None) is not None:
        raise ValueError(
            f"expected attention logits as they are, found them soft-capped at "
            f"{text.attn_logit_softcapping}; leave out the attention-mass term"
        )
