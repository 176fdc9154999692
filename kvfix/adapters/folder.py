"""Where an adapter is: a folder, a subfolder with its name, or a repository of the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from kvfix.adapters.settings import read_settings
from kvfix.adapters.tensors import Tensors, check_tensors
from kvfix.checkpoint.folder import fetch, sha256_of

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_HUB_PATH = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)")
_HUB_FILES = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.jinja", "*.txt", "*.model")
# What trainers leave beside an adapter and what holds no weights of the model.
_NO_WEIGHTS = (
    WEIGHTS, PICKLE, "kvfix_*.safetensors", "optimizer*", "scheduler*", "scaler.pt",
    "rng_state*", "random_states_*", "training_args.bin", "*_states.pt",
)  # fmt: skip
_WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".npz", ".h5", ".msgpack")
_GATE = "kvfix_gate.safetensors"  # written until 0.1, for a loss that is no longer there
_WHOLE_MODEL = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter on disk, checked as far as that goes without its model."""

    folder: Path
    file: Path  # its weights
    settings: dict[str, Any] = field(repr=False)  # adapter_config.json
    tensors: Tensors = field(repr=False)  # what the file holds
    beside: tuple[Path, ...] = ()  # further files with trained weights, which belong to it
    revision: str | None = None  # commit; None for a folder of one's own
    warnings: tuple[str, ...] = ()  # sentences that its user has to know

    @cached_property
    def sha256(self) -> str:
        """Hash of its weights and of trained weights beside them."""
        return sha256_of([self.file, *self.beside])


def refuse_gate(folder: Path) -> None:
    """Refuse an adapter that is nothing without biases (a gate) that kvfix no longer applies."""
    if (folder / _GATE).exists():
        raise ValueError(
            f"{folder}: expected an adapter alone, found {_GATE} beside it, whose biases on "
            "attention kvfix no longer applies; train again, or move the file away to use the "
            "adapter without them"
        )


def find(path_or_id: str) -> Adapter:
    """Locate an adapter and check its files; nothing heavy is loaded, nothing is unpickled.

    It may be in a folder, alone in a folder's subfolder, or on the hub (owner/name, or
    owner/name/subfolder). One that is damaged, empty, does nothing or is no LoRA is a ValueError.
    """
    folder, revision = _folder(path_or_id)
    refuse_gate(folder)
    warnings = []
    if folder.name != Path(path_or_id).name and revision is None:
        warnings.append(f"{path_or_id}: the adapter in its subfolder {folder.name} is used")
    settings, unknown = read_settings(folder / CONFIG)
    warnings += unknown
    file = _weights(folder)
    beside = _beside(folder)
    tensors = check_tensors(file, settings, helped=bool(beside))
    return Adapter(folder, file, settings, tensors, beside, revision, tuple(warnings))


def _folder(path_or_id: str) -> tuple[Path, str | None]:
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return _with_adapter(folder, path_or_id), None
    found = _HUB_PATH.fullmatch(path_or_id)
    if found is None:
        raise FileNotFoundError(
            f"{path_or_id}: expected an adapter folder or a hub id (owner/name), found neither"
        )
    name, inside = found[1], found[2].removeprefix("/")
    root = _fetch(name, inside)
    if not inside and not (root / CONFIG).is_file():
        fetch(name, patterns=[f"*/{CONFIG}"], ignore=["*/*/*"], what="adapter")
        inside = _with_adapter(root, name).name
        _fetch(name, inside)
    return _with_adapter(root / inside, path_or_id), root.name


def _fetch(name: str, inside: str) -> Path:
    """One folder of a repository, without the folders in it."""
    at = f"{inside}/" if inside else ""
    return fetch(
        name,
        patterns=[at + pattern for pattern in _HUB_FILES],
        ignore=[f"{at}*/*", f"{at}optimizer*", f"{at}training_args.bin"],
        what="adapter",
    )


def _with_adapter(folder: Path, asked: str) -> Path:
    """The folder, or the only one in it that holds an adapter."""
    if (folder / CONFIG).is_file():
        return folder
    inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if len(inner) == 1:
        return folder / inner[0]
    if inner:
        names = ", ".join(inner[:5]) + (", ..." if len(inner) > 5 else "")
        raise ValueError(
            f"{asked}: expected one adapter, found {len(inner)} in subfolders: {names}; name one "
            f"of them, such as {Path(asked) / inner[-1]}"
        )
    if (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{asked}: expected an adapter folder with {CONFIG}, found config.json: a whole model, "
            "which is asked for with --model"
        )
    raise FileNotFoundError(
        f"{asked}: expected an adapter folder with {CONFIG}, found no such file in it"
    )


def _weights(folder: Path) -> Path:
    file = folder / WEIGHTS
    if file.is_file():
        return file
    if (folder / PICKLE).is_file():
        at = repr(str(folder))
        raise FileNotFoundError(
            f"{folder}: expected {WEIGHTS}, found {PICKLE}, a pickle, which is not loaded; convert "
            'it once: python -c "import os, torch; from safetensors.torch import save_file; '
            f"os.chdir({at}); t = torch.load('{PICKLE}', map_location='cpu', weights_only=True); "
            f"save_file({{k: v.clone().contiguous() for k, v in t.items()}}, '{WEIGHTS}')\""
        )
    raise FileNotFoundError(f"{folder}: expected {WEIGHTS}, found no such file")


def _beside(folder: Path) -> tuple[Path, ...]:
    """Files that may hold trained weights beside the adapter; a whole model is refused."""
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in _WEIGHT_SUFFIXES and path.is_file() and not _fits(path, _NO_WEIGHTS)
    ]
    whole = [path.name for path in files if _fits(path, _WHOLE_MODEL)]
    if whole:
        raise ValueError(
            f"{folder}: expected an adapter alone, found a whole model's weights beside it "
            f"({whole[0]}); ask for them with --model, or move them away to use the adapter"
        )
    return tuple(files)


def _fits(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)
