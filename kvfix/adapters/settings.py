"""adapter_config.json: what its settings may be, and what PEFT is given of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from kvfix.adapters.patterns import is_name
from kvfix.checkpoint.folder import read_json
from kvfix.wording import cause, shown

# Settings that replace layers of the model, import a package by name, or act on some prompts only.
_REFUSED = ("layer_replication", "megatron_config", "alora_invocation_tokens", "arrow_config")


def read_settings(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings that this PEFT knows, and warnings on those that it does not."""
    from peft import LoraConfig

    settings = read_json(file)
    if settings.get("peft_type") != "LORA":
        raise ValueError(
            f"{file}: expected a LORA adapter, found {shown(settings.get('peft_type'))}"
        )
    for name in _REFUSED:
        if settings.get(name):
            raise ValueError(
                f"{file}: expected an adapter without {name}, found {shown(settings[name])}; kvfix "
                "does not load such adapters"
            )
    for name, (expected, fits) in _KINDS.items():
        if name in settings and not fits(settings[name]):
            raise ValueError(
                f"{file}: expected {name} to be {expected}, found {shown(settings[name])}"
            )
    if not settings.get("target_modules") and not settings.get("target_parameters"):
        raise ValueError(
            f"{file}: expected target_modules, found {shown(settings.get('target_modules'))}"
        )
    known = {field.name for field in fields(LoraConfig)} - {"runtime_config"}
    unknown = sorted(name for name in settings if name not in known)
    told = [f"{name}={shown(settings[name], 30)}" for name in unknown if settings[name]]
    warnings = []
    if told:
        warnings.append(
            f"{file}: settings that this peft does not know are ignored: {', '.join(told[:3])}"
            f"{' ...' if len(told) > 3 else ''}; upgrade peft if the adapter needs them"
        )
    return {name: value for name, value in settings.items() if name in known}, warnings


def lora_config(settings: dict[str, Any], *, where: Path) -> Any:
    """PEFT's config; settings that exclude each other are a ValueError."""
    from peft import LoraConfig

    # task_type chooses a wrapper with a forward of its own; the plain one takes what a model takes.
    asked = settings | {"task_type": None, "inference_mode": True}
    try:
        return LoraConfig(**asked)
    except Exception as error:  # PEFT raises whatever its code runs into
        raise ValueError(
            f"{where}: expected settings that peft takes, found {type(error).__name__}: "
            f"{cause(error)}"
        ) from error


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e6  # also of an integer that no float can hold
        and math.isfinite(value)
    )


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _names(value: Any) -> bool:
    return _strings(value) and all(is_name(item) for item in value)


def _by_name(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(isinstance(key, str) and key and fits(item) for key, item in value.items())
    )


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and all(_whole(item, 0) for item in value)


def _optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_PATTERNS = (
    "a regex or a list of names",
    _optional(lambda v: (isinstance(v, str) and v != "") or _strings(v)),
)
_FLAG = ("true or false", _optional(lambda v: isinstance(v, bool)))
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number from 1", lambda v: _whole(v, 1)),
    "lora_alpha": ("a number other than 0", lambda v: _number(v) and v != 0),
    "lora_dropout": ("a number in [0, 1)", lambda v: _number(v) and 0 <= v < 1),
    "target_modules": _PATTERNS,
    "exclude_modules": _PATTERNS,
    "rank_pattern": ("ranks by name", _optional(_by_name(lambda v: _whole(v, 1)))),
    "alpha_pattern": ("numbers by name", _optional(_by_name(_number))),
    "modules_to_save": ("a list of module names", _optional(_names)),
    "layers_to_transform": ("layer numbers", _optional(lambda v: _whole(v, 0) or _wholes(v))),
    "layers_pattern": (
        "module names",
        _optional(lambda v: _names(v) or (isinstance(v, str) and (v == "" or is_name(v)))),
    ),
    "trainable_token_indices": (
        "token ids, or lists of them by name",
        _optional(lambda v: _wholes(v) or _by_name(_wholes)(v)),
    ),
    "target_parameters": ("a list of names", _optional(_names)),
    "bias": ("none, all or lora_only", lambda v: v in ("none", "all", "lora_only")),
    "init_lora_weights": ("true, false or a name", lambda v: isinstance(v, bool | str)),
    "base_model_name_or_path": ("a name", _optional(lambda v: isinstance(v, str))),
    "use_dora": _FLAG,
    "use_rslora": _FLAG,
    "fan_in_fan_out": _FLAG,
    "lora_bias": _FLAG,
    "ensure_weight_tying": _FLAG,
}
