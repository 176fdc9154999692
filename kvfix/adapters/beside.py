"""Weights that were trained in full and lie beside the adapter, as LLaVA and others save them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kvfix.adapters.naming import Naming, naming_of
from kvfix.adapters.tensors import check_finite, module_of
from kvfix.wording import cause, shown

_PREFIXES = ("base_model.model.", "base_model.", "module.")
_PARTS = (".base_layer.", ".original_module.", ".modules_to_save.default.")


def load_beside(model: Any, files: Iterable[Path], known: Iterable[Naming]) -> None:
    """Copy trained weights into the base model, every tensor or none, before it gets the adapter.

    Files are safetensors, or pickles of tensors alone, read with torch's safe loader; `known` are
    older names of the family's modules. A tensor that is not the model's is a ValueError.
    """
    known = tuple(known)
    state = dict(model.state_dict(keep_vars=True))
    modules = {name for name, _ in model.named_modules()}
    copies: dict[str, Tensor] = {}
    for file in files:
        tensors = {_bare(name): tensor for name, tensor in _read(file).items()}
        naming = naming_of(map(module_of, tensors), existing=modules, known=known)
        strangers = [
            name
            for name, tensor in tensors.items()
            if (mine := state.get(naming.now(name))) is None or mine.shape != tensor.shape
        ]
        if strangers:
            raise ValueError(
                f"{file}: expected weights of this model that were trained beside the adapter, "
                f"found {len(strangers)} of {len(tensors)} tensors that it does not have in that "
                f"shape, such as {shown(min(strangers), 100)}; move the file away to use the "
                "adapter without them"
            )
        for name, tensor in tensors.items():
            check_finite(file, name, tensor)
            copies[naming.now(name)] = tensor
    with torch.no_grad():
        for name, tensor in copies.items():
            state[name].copy_(tensor)
        for name, tensor in copies.items():
            if not torch.equal(state[name], tensor.to(state[name])):
                raise ValueError(
                    f"{name}: expected weights beside the adapter that the model can hold, found "
                    "two values for weights that it has tied"
                )


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for part in _PARTS:
        name = name.replace(part, ".")
    return name


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's safe unpickler fails in any way that a torn file likes
        raise ValueError(
            f"{file}: expected trained weights beside the adapter, as tensors alone, found "
            f"{cause(error)}; move the file away to use the adapter without them"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise ValueError(
            f"{file}: expected trained weights beside the adapter, as tensors by name, found "
            f"{type(found).__name__}; move the file away to use the adapter without it"
        )
    return found
