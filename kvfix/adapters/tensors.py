"""An adapter's tensors: whether they are whole, finite, and change anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvfix.checkpoint.folder import tensor_names
from kvfix.wording import cause, shown

Shapes = dict[str, tuple[int, ...]]
_MAGNITUDE = "lora_magnitude_vector"
_PREFIX = "base_model.model."
_RANKS = 1024  # a rank up to this costs no memory worth a refusal
GATHER = (
    "as DeepSpeed ZeRO-3 leaves them where they were not gathered: train with "
    '"stage3_gather_16bit_weights_on_model_save": true in the DeepSpeed config (transformers\' '
    "Trainer then saves them), or make them of the checkpoint with its zero_to_fp32.py"
)


class Tensors(NamedTuple):
    """What an adapter's file holds."""

    shapes: Shapes
    magnitudes_alone: bool  # nothing can change the model but DoRA's magnitudes, if trained


def check_tensors(file: Path, settings: dict[str, Any], *, helped: bool) -> Tensors:
    """Read every tensor once; a damaged or empty file is refused, and one that does nothing alone.

    One that is `helped` by trained weights beside it may do nothing itself.
    """
    shapes: Shapes = {}
    zero: set[str] = set()
    names = sorted(tensor_names(file))
    if not names:
        raise ValueError(
            f"{file}: expected trained weights, found the file EMPTY, without a tensor, {GATHER}"
        )
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in names:
                tensor = tensors.get_tensor(name)
                shapes[name] = tuple(tensor.shape)
                check_finite(file, name, tensor)
                if not tensor.any():
                    zero.add(name)
    except (SafetensorError, TypeError) as error:
        raise ValueError(
            f"{file}: expected readable safetensors, found {cause(error)}; fetch it again"
        ) from error
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if empty:
        raise ValueError(
            f"{file}: expected trained weights, found {len(empty)} of {len(names)} tensors EMPTY, "
            f"such as {shown(empty[0], 100)} of shape {list(shapes[empty[0]])}, {GATHER}"
        )
    _check_ranks(file, shapes, settings)
    working = [name for name in names if _works(name, zero)]
    if not helped and not working:
        raise nothing_trained(file, min(zero, default=names[0]))
    return Tensors(shapes, magnitudes_alone=all(_MAGNITUDE in name for name in working))


def nothing_trained(file: Path, name: str) -> ValueError:
    """The refusal of an adapter with which every module is what it was."""
    return ValueError(
        f"{file}: expected trained weights, found every update all zero, such as that of "
        f"{shown(name, 120)}: it changes nothing"
    )


def check_finite(file: Path, name: str, tensor: Tensor) -> None:
    """Refuse the NaN or infinity that a training that diverged has left."""
    if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
        raise ValueError(
            f"{file}: expected finite weights, found NaN or infinity in {shown(name, 120)}; the "
            "training has diverged: use an earlier checkpoint"
        )


def module_of(name: str) -> str:
    """The module, by its path in the base model, that a tensor of an adapter belongs to."""
    path = name.removeprefix(_PREFIX)
    for mark in (".lora_", ".token_adapter.", ".base_layer.", ".modules_to_save.", ".trainable_"):
        path = path.partition(mark)[0]
    if path == name.removeprefix(_PREFIX):
        path = path.rpartition(".")[0]
    return path


def _check_ranks(file: Path, shapes: Shapes, settings: dict[str, Any]) -> None:
    """Refuse a rank that no tensor has: it would be allocated before PEFT compares them."""
    found = [
        shape[0]
        for name, shape in shapes.items()
        if shape and (".lora_A" in name or "lora_embedding_A" in name)
    ]
    most = max([_RANKS, *found])
    asked = [settings.get("r", 8), *(settings.get("rank_pattern") or {}).values()]
    if max(asked) > most:
        raise ValueError(
            f"{file}: expected tensors of rank {shown(max(asked))}, as adapter_config.json says, "
            f"found at most {max(found, default=0)}"
        )


def _works(name: str, zero: set[str]) -> bool:
    """Whether a tensor can change what its module gives.

    An update is a product with both factors off zero. A layer without gradient, such as a vision
    tower's last, keeps `lora_B` at zero, and that alone is normal. Saved modules and tokens, biases
    and DoRA's magnitudes change the model without a `lora_B`.
    """
    if ".lora_" not in name or _MAGNITUDE in name:
        return True
    if "lora_A" in name or "lora_embedding_A" in name:
        return False
    other = name.replace("lora_B", "lora_A").replace("lora_embedding_B", "lora_embedding_A")
    return name not in zero and other not in zero
