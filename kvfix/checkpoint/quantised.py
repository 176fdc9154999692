"""Checkpoints that were quantised before kvfix saw them: by which method, what they can do here.

| method | read (eval, diagnose) | train | merge |
|---|---|---|---|
| bitsandbytes, 4 bits | yes | yes, as with quant=nf4 | no |
| bitsandbytes, 8 bits | yes | no | no |
| any other of transformers (AWQ, GPTQ, FP8, ...) | where its package and device are | no | no |
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from kvfix.wording import cause, shown

_SKIPPED = ("llm_int8_skip_modules", "modules_to_not_convert", "ignore")
_BITS = ("bits", "w_bit", "weight_bits", "num_bits", "nbits", "wbits")
_BITS_OF = {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp8": 8.25, "mxfp4": 4.25, "nvfp4": 4.5}
_GROUP = 128  # weights that share a scale, where the config does not say


class Quantised(NamedTuple):
    """How a checkpoint's weights are stored."""

    method: str  # bitsandbytes' nf4 (or fp4) and int8, else the name that config.json has
    bits: float | None  # of a weight, scales left out; None if config.json does not say
    group: int  # how many weights share a scale
    skipped: tuple[str, ...]  # parts of names of the modules that are not quantised
    settings: dict[str, Any]  # `quantization_config` as in config.json

    @property
    def trains(self) -> bool:
        """Whether a LoRA adapter can be trained on it here."""
        return self.method == "nf4"

    @property
    def storage(self) -> str:
        """Data type that 4-bit weights of bitsandbytes are kept in."""
        return str(self.settings.get("bnb_4bit_quant_storage") or "uint8")


def quantised(config: Any) -> Quantised | None:
    """The quantisation of a Hugging Face config or of its language model's; None without any."""
    found = None
    for part in (config, getattr(config, "text_config", None)):
        found = found or getattr(part, "quantization_config", None)
    if not found:
        return None
    settings: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method")))
    bits: float | None
    if settings.get("load_in_4bit"):
        method, bits = "nf4", 4.0
    elif settings.get("load_in_8bit"):
        method, bits = "int8", 8.0
    else:
        bits = _BITS_OF.get(method) or _first(settings, _BITS)
    skipped = next((settings[key] for key in _SKIPPED if settings.get(key)), ())
    names = tuple(_literal(str(name)) for name in _listed(skipped))
    group = _first(settings, ("group_size", "weight_block_size", "q_group_size")) or _GROUP
    return Quantised(method, bits, max(int(group), 1), (*names, "lm_head"), settings)


def without_quantisation(config: Any) -> Any:
    """A copy of a config of the same model before it was quantised."""
    plain = copy.deepcopy(config)
    for part in (plain, getattr(plain, "text_config", plain)):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return plain


def abilities(found: Quantised) -> str:
    """What a checkpoint of this method can do here, in one line."""
    if found.trains:
        return "a checkpoint in nf4 can be read and trained, but not merged"
    missing = what_is_missing(found)
    reads = f"needs more here: {missing}" if missing else "can be read (kvfix eval, diagnose)"
    return (
        f"a checkpoint quantised by {found.method} {reads}; it cannot be trained or merged: take "
        "the unquantised model, with nf4 for less memory"
    )


def what_is_missing(found: Quantised) -> str | None:
    """Why transformers could not load it here (a package, a device); None if it could."""
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer: Any = AutoHfQuantizer.from_config(found.settings, pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # each method's own: ImportError, RuntimeError, ValueError, ...
        return cause(error)
    return None


def stored_bytes(folder: Path) -> int | None:
    """Bytes of all tensors, from the headers of a folder's safetensors; None without any."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / name for name in sorted(names)]
    if not files or not all(file.is_file() for file in files):
        return None
    total = 0
    for file in files:
        with file.open("rb") as stream:
            total += file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
    return total


def estimated_bytes(found: Quantised, model: nn.Module, nf4_bytes: Any) -> int:
    """Bytes of all weights as the config describes them, or a ValueError if it does not say.

    `model` is unquantised, on the meta device; `nf4_bytes` tells bytes by the numbers in a weight.
    """
    if found.bits is None:
        raise ValueError(
            f"expected bits in quantization_config, found {shown(sorted(found.settings))}"
        )
    total = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    for linear in linears(found, model):
        count = linear.weight.numel()
        total -= linear.weight.nbytes
        if found.method == "nf4":
            total += nf4_bytes(count)
        else:  # each group has a scale of two bytes and a zero point
            groups = math.ceil(count / found.group)
            total += math.ceil(found.bits * (count + groups) / 8) + 2 * groups
    return total


def linears(found: Quantised, model: nn.Module) -> Iterable[nn.Linear]:
    """The layers that are quantised."""
    for name, module in model.named_modules():
        inside = f".{name}."  # names begin with `model.` since transformers 4.52, or do not
        if isinstance(module, nn.Linear) and not any(f".{s}." in inside for s in found.skipped):
            yield module


def _literal(pattern: str) -> str:
    """A regex of somebody else's is not run: what it names plainly is enough for a sum of bytes."""
    return pattern.removeprefix("re:").replace(".*", "").replace("\\", "").strip(".^$")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _first(settings: Any, names: tuple[str, ...]) -> float | None:
    """The first positive number under one of these names, however deep it lies."""
    if isinstance(settings, Mapping):
        for name in names:
            value = settings.get(name)
            value = value[-1] if isinstance(value, list) and value else value
            if isinstance(value, int | float) and value > 0:
                return float(value)
        settings = list(settings.values())
    if isinstance(settings, list):
        return next((n for value in settings if (n := _first(value, names)) is not None), None)
    return None
