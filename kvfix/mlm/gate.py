"""A learned number per layer and KV head, added to the logits of text queries on chosen image keys.

The safest handle on input-agnostic keys: neither keys nor values change, only how much late text
looks at them. Clipping or blocking outliers outright damages models, learnable gating helps
(arXiv 2601.22966). It starts at zero, where the model is the base model.

`kvfix.mlm.intervene` applies it, and adds what it is asked for; every command of kvfix does
(`gated`). In the adapter's folder it is one more file, which plain PEFT ignores: without kvfix the
adapter acts ungated.

Shapes: S layers of the model, H KV heads, V tokens of an image, E gated layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kvfix.checkpoint.folder import GATE, tensor_names
from kvfix.mlm.edges import Edit
from kvfix.mlm.load import Mlm
from kvfix.mlm.prompts import Encoded

FILE = GATE
_FORMAT = "1"


class KeyGate(nn.Module):
    """Biases of the gated layers' KV heads, and the keys that they apply to.

    Attributes:
        bias_EH: The parameters, nats; e^bias is the factor on a key's weight before normalisation.
        keys_SHV: Bool; True at a gated key of an image of V tokens.
        layers: The gated layers, 0-based, ascending.
    """

    keys_SHV: Tensor

    def __init__(self, keys_SHV: Tensor, layers: Sequence[int]):
        """Start closed to nothing: all biases are zero.

        Args:
            keys_SHV: Bool, over all layers and KV heads of the model, at one resolution.
            layers: Which of them get a bias.

        Raises:
            ValueError: Keys of another kind, a layer that does not exist, or no key to gate.
        """
        super().__init__()
        if keys_SHV.dtype != torch.bool or keys_SHV.ndim != 3:
            raise ValueError(
                "expected boolean keys of layers x KV heads x tokens, found "
                f"{keys_SHV.dtype} {tuple(keys_SHV.shape)}"
            )
        wrong = [layer for layer in layers if not 0 <= layer < len(keys_SHV)]
        if wrong or not layers or len(set(layers)) != len(layers):
            raise ValueError(
                f"expected layers out of 0..{len(keys_SHV) - 1}, each once, found {list(layers)}"
            )
        self.layers = tuple(sorted(layers))
        if not keys_SHV[list(self.layers)].any():
            raise ValueError(
                f"expected at least one key to gate in layers {list(self.layers)}, found none; "
                "diagnose the keys first, or choose layers that have input-agnostic ones"
            )
        self.bias_EH = nn.Parameter(torch.zeros(len(self.layers), keys_SHV.shape[1]))
        self.register_buffer("keys_SHV", keys_SHV.cpu().clone())

    def forward(self) -> Tensor:
        """bias_SH over all layers of the model, zero where ungated.

        Called as a module, so that ZeRO-3 gathers the parameters.
        """
        all_SH = self.bias_EH.new_zeros(self.keys_SHV.shape[:2], dtype=torch.float32)
        at = torch.tensor(self.layers, device=self.bias_EH.device)
        return all_SH.index_copy(0, at, self.bias_EH.float())

    def edit(self, encoded: Encoded, bias_SH: Tensor) -> Edit:
        """What `intervene` applies to this batch.

        Args:
            encoded: The batch; images of another size than the gate's are left alone.
            bias_SH: Of `self()`, called once a step.
        """
        tokens = self.keys_SHV.shape[-1]
        keys = [
            [
                self.keys_SHV
                if len(span.positions_V) == tokens
                else torch.zeros(len(span.positions_V), dtype=torch.bool)
                for span in spans
            ]
            for spans in encoded.images
        ]
        return Edit("text", keys=keys, bias_SH=bias_SH, layers=self.layers)

    def dummy(self) -> Tensor:
        """Zero that touches every parameter by a real forward pass."""
        return self().sum() * 0

    def save(self, folder: Path | str) -> Path:
        """Write the gate beside the adapter; under ZeRO-3 inside its gathering context."""
        if self.bias_EH.numel() == 0:
            raise ValueError(
                "expected the gate's biases, found a partitioned parameter; gather it first "
                "(deepspeed.zero.GatheredParameters)"
            )
        file = Path(folder) / FILE
        tensors = {"bias": self.bias_EH.detach().float().cpu(), "keys": self.keys_SHV.cpu()}
        written = file.with_suffix(".new")
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            written,
            metadata={"format": _FORMAT, "layers": json.dumps(self.layers), "queries": "text"},
        )
        written.rename(file)
        return file

    @classmethod
    def load(cls, folder: Path | str) -> KeyGate:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: No gate in the folder.
            ValueError: A damaged file, or one of another format.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise FileNotFoundError(f"{folder}: expected {FILE}, found no such file")
        names = tensor_names(file)
        with safe_open(file, framework="pt") as tensors:
            about = tensors.metadata() or {}
            if names != {"bias", "keys"} or about.get("format") != _FORMAT:
                raise ValueError(
                    f"{file}: expected a gate of format {_FORMAT}, found tensors {sorted(names)} "
                    f"of format {about.get('format')}"
                )
            gate = cls(tensors.get_tensor("keys"), json.loads(about["layers"]))
            bias_EH = tensors.get_tensor("bias")
        if bias_EH.shape != gate.bias_EH.shape:
            raise ValueError(
                f"{file}: expected a bias of {tuple(gate.bias_EH.shape)} layers x KV heads, found "
                f"{tuple(bias_EH.shape)}"
            )
        with torch.no_grad():
            gate.bias_EH.copy_(bias_EH)
        return gate


def gated(mlm: Mlm) -> Mlm:
    """The model with the gate of its adapter's folder in every pass; itself without one.

    Raises:
        ValueError: A damaged gate, or one of another model.
    """
    if mlm.adapter is None or not (mlm.adapter.folder / FILE).is_file():
        return mlm
    gate = KeyGate.load(mlm.adapter.folder)
    expected = (mlm.n_layers, mlm.n_kv_heads)
    if gate.keys_SHV.shape[:2] != expected:
        raise ValueError(
            f"{mlm.adapter.folder / FILE}: expected a gate of {expected} layers x KV heads, found "
            f"{tuple(gate.keys_SHV.shape[:2])}"
        )
    with torch.no_grad():
        bias_SH = gate()
    return replace(mlm, edits=lambda encoded: (gate.edit(encoded, bias_SH),))
