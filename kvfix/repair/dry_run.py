"""A pass of a model without weights or data: how many bytes autograd and the kernels would hold.

The model is built on the meta device, then its tensors are made fake: they have shapes and types
and know their device, so that attention picks the kernel it would really run, but hold nothing.
What is counted is what PyTorch allocates; scratch space inside kernels, fragmentation and the
libraries themselves are not.

Shapes: B samples, L tokens, V image tokens of a sample, C channels, N rows with logits.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kvfix.checkpoint.folder import Weights
from kvfix.mlm.families import family_of
from kvfix.mlm.language_models import language_model_of
from kvfix.mlm.load import Mlm
from kvfix.mlm.renamed import recompute_layers
from kvfix.repair.terms.kl import kl_anchor


class Batch(NamedTuple):
    """One micro-batch."""

    images: Any  # arguments of `get_image_features` by sample (`Family.image_shapes`)
    image_tokens: int  # V
    text_tokens: int  # all others of a sample
    samples: int  # B
    logit_rows: int  # N of a sample


class PeakBytes(TorchDispatchMode):
    """Bytes that tensors made inside the block hold together, `now` and at their `peak`."""

    def __init__(self, known: Iterable[Tensor] = ()):
        """Leave out the storage of `known` tensors, such as weights."""
        super().__init__()
        self.now = self.peak = 0
        self._seen = {x.untyped_storage()._cdata for x in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def skeleton(config: Any, *, name: str, dtype: torch.dtype, processor: Any = None) -> Mlm:
    """The model of a Hugging Face config on the meta device: every module, no memory."""
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    family = family_of(config.model_type, where=name)
    language_model_of(config.text_config.model_type, where=name)
    with torch.device("meta"), no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.tie_weights()
    weights = Weights(folder=Path(), files=(), config={}, revision=None, seed=None)
    return Mlm(name, model.eval(), processor, family, weights, adapter=None, dtype=dtype)


def training_peak(mlm: Mlm, batch: Batch, *, checkpointing: bool) -> int:
    """Bytes of one step beyond weights, gradients and optimizer states.

    The base model's pass for the anchors, then the tuned pass, KL on the logits and backward. `mlm`
    is from `skeleton`, with an adapter; its tensors become fake.
    """
    model = mlm.model.train()
    if checkpointing:
        recompute_layers(model)
    with _without_data(model) as known:
        for parameter in model.parameters():
            if parameter.requires_grad:  # of these, gradients are counted elsewhere
                parameter.grad = torch.empty_like(parameter)
                known.append(parameter.grad)
        inputs = _inputs(mlm, batch)
        with PeakBytes(known) as counter:
            with torch.no_grad():
                base_NW = _logits(mlm, batch, inputs)
            tuned_NW = _logits(mlm, batch, inputs)
            kl_anchor(tuned_NW, base_NW, torch.ones(len(base_NW))).value.backward()
            return counter.peak


def reading_peak(mlm: Mlm, batch: Batch) -> int:
    """Bytes of one pass without gradients and head, as diagnoses run it; tensors become fake."""
    with _without_data(mlm.model.eval()) as known, torch.no_grad():
        inputs = _inputs(mlm, batch)
        with PeakBytes(known) as counter:
            _hidden(mlm, batch, inputs)
            return counter.peak


def _inputs(mlm: Mlm, batch: Batch) -> list[dict[str, Any]]:
    """What the tower is given of every sample, pixels in the model's data type."""
    made = [batch.images() for _ in range(batch.samples)]
    return [given | {"pixel_values": given["pixel_values"].to(mlm.dtype)} for given in made]


def _hidden(mlm: Mlm, batch: Batch, inputs: list[dict[str, Any]]) -> Tensor:
    """The last hidden states of images, then text; a pass holds copies of all it is given."""
    width, length = mlm.config.text_config.hidden_size, batch.image_tokens + batch.text_tokens
    held = [tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, i) for i in inputs]
    embedded_BLC = torch.empty(batch.samples, length, width, dtype=mlm.dtype)
    image_BVC = torch.cat(
        [mlm.family.pictures(mlm.base.model, given).view(1, -1, width) for given in held]
    )
    if image_BVC.shape[1] != batch.image_tokens:
        raise ValueError(
            f"expected {batch.image_tokens} image tokens, found {image_BVC.shape[1]} out of the "
            "projector: kvfix's layout and the model disagree"
        )
    inputs_BLC = torch.cat([image_BVC, embedded_BLC[:, batch.image_tokens :]], dim=1)
    return mlm.lm(inputs_embeds=inputs_BLC, use_cache=False).last_hidden_state


def _logits(mlm: Mlm, batch: Batch, inputs: list[dict[str, Any]]) -> Tensor:
    hidden_BLC = _hidden(mlm, batch, inputs)
    return mlm.logits(hidden_BLC[:, -batch.logit_rows :].flatten(0, 1))


@contextmanager
def _without_data(model: nn.Module) -> Iterator[list[Tensor]]:
    """Fake tensors throughout, in place; yields the model's own."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        made: dict[int, tuple[Tensor, Tensor]] = {}  # tied weights stay tied
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                for name, x in store.items():
                    if x is None:
                        continue
                    if id(x) not in made:
                        made[id(x)] = (x, _empty_like(x))
                    store[name] = made[id(x)][1]  # type: ignore[assignment]
        yield [new for _, new in made.values()]


def _empty_like(x: Tensor) -> Tensor:
    empty = torch.empty(x.shape, dtype=x.dtype)
    if isinstance(x, nn.Parameter):
        return nn.Parameter(empty, requires_grad=x.requires_grad)
    return empty
