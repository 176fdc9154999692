"""Which model an adapter was trained on, and whether it is this one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvfix.adapters.folder import Adapter
from kvfix.checkpoint.folder import Weights
from kvfix.wording import shown

_TRAINING = "training.json"  # kvfix's own record of a training
_SUFFIXES = re.compile(r"(-hf|-unsloth|-bnb-4bit)+$")
_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/[^/]+/?$")


class OtherBase(ValueError):
    """The adapter was trained on another model."""


class AdapterWarning(UserWarning):
    """Something that the user of an adapter has to know."""


def check_base(adapter: Adapter, weights: Weights, *, name: str, force: bool) -> Adapter:
    """Compare what the adapter says of its base with the model, called `name`, that is to be
    loaded.

    The weights' hash decides where it is known. Without it, another class of model is refused with
    OtherBase; a name proves nothing, as the same model has many. Where the base may be another one,
    or `force` is set, the adapter comes back with a warning.
    """
    warnings = _doubts(adapter, weights, name, force)
    return replace(adapter, warnings=(*adapter.warnings, *warnings))


def _doubts(adapter: Adapter, weights: Weights, name: str, force: bool) -> list[str]:
    record = _training(adapter.folder)
    trained_on = record.get("sha256")
    said = adapter.settings.get("base_model_name_or_path")
    if isinstance(trained_on, str):
        here = weights.sha256()
        if trained_on == here:
            return []
        found = (
            f"one of {shown(record.get('id') or said)} (sha256 of its weights {trained_on[:12]}, "
            f"of this model's {here[:12]})"
        )
        return _refuse(adapter, found, name, force)
    kind, mine = _class_of(adapter, said), (weights.config.get("architectures") or [None])[0]
    if kind and mine and kind != mine:
        return _refuse(adapter, f"one of a {kind}, this is a {mine}", name, force)
    if isinstance(said, str) and said and not _same(said, name, weights):
        return [
            f"{adapter.folder}: was trained on {shown(said)}; whether {shown(name)} is the same "
            "model, its files do not tell"
        ]
    return []


def _refuse(adapter: Adapter, found: str, name: str, force: bool) -> list[str]:
    if force:
        return [f"{adapter.folder}: is not an adapter of {name}, but {found}; loaded all the same"]
    raise OtherBase(
        f"{adapter.folder}: expected an adapter of {name}, found {found}; --force-adapter "
        "(force_adapter=True) loads it all the same"
    )


def _training(folder: Path) -> dict[str, Any]:
    """What kvfix wrote of the model when it trained this adapter; above a checkpoint's folder."""
    places = [folder, *([folder.parent] if folder.name.startswith("checkpoint-") else [])]
    for place in places:
        try:
            record = json.loads((place / _TRAINING).read_text(encoding="utf-8"))
            return record["model"] if isinstance(record["model"], dict) else {}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another tool's file of this name, or none
    return {}


def _class_of(adapter: Adapter, said: Any) -> str | None:
    """The class of its base: PEFT saves it, or the base is a folder that is still there."""
    mapping = adapter.settings.get("auto_mapping")
    if isinstance(mapping, dict) and isinstance(mapping.get("base_model_class"), str):
        return mapping["base_model_class"]
    if not isinstance(said, str) or not said:
        return None
    try:
        config = json.loads((Path(said).expanduser() / "config.json").read_text(encoding="utf-8"))
        return config["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _same(said: str, name: str, weights: Weights) -> bool:
    mine = (name, str(weights.folder), str(weights.config.get("_name_or_path") or ""))
    return _plain(said) in {_plain(x) for x in mine if x}


def _plain(name: str) -> str:
    """The last part of a path or hub id, without the endings of converted copies."""
    snapshot = _SNAPSHOT.search(name)
    last = snapshot[2] if snapshot else name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return _SUFFIXES.sub("", last.lower())
