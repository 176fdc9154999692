"""What moves a score: equal in two starts of a run, or samples of the first are not kept.

A fingerprint is a dict of JSON values, nested at will. What may differ between two starts, but is
worth knowing (versions of packages, the processor), is in a run's `starts` instead.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import kvfix
from kvfix.data.units import UnitSet

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "numpy",
    "scipy",
    "pillow",
)
HOST = ("processor", "accelerator")
# Who wrote a config, and where: these move no score.
ADAPTER_WRITER = (
    *("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type"),
    "peft_version",
)
WRITER = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")
# Fields that kvfix 0.1.0 did not write at first; a run without them cannot be gone on with.
LATER = ("attn", "config", "device", "processor", "adapter_settings")


def model_fingerprint(mlm: Any, *, quant: str | None) -> dict[str, Any]:
    """What of a loaded `kvfix.mlm.load.Mlm` moves a score."""
    return {
        "weights": mlm.sha256,
        "config": _sha256(json.dumps(_meaning(mlm.weights.config), sort_keys=True).encode()),
        "processor": mlm.processor_sha256,
        "adapter": None if mlm.adapter is None else mlm.adapter.sha256,
        "adapter_settings": None if mlm.adapter is None else _settings_sha256(mlm.adapter.settings),
        "dtype": str(mlm.dtype).removeprefix("torch."),
        "quant": quant,
        "attn": attention_of(mlm.config),
        "device": mlm.device.type,
    }


def _settings_sha256(settings: dict[str, Any]) -> str:
    """Of what scales and places an adapter's weights: its alpha, for instance."""
    kept = {key: value for key, value in settings.items() if key not in ADAPTER_WRITER}
    return _sha256(json.dumps(kept, sort_keys=True, default=str).encode())


def _meaning(config: Any) -> Any:
    """A config without what says only by whom it was written, and its dtype, which is apart."""
    if not isinstance(config, dict):
        return config
    return {k: _meaning(v) for k, v in config.items() if k not in WRITER}


def attention_of(config: Any) -> str:
    """The attention implementation that transformers chose; of each part where they differ."""
    parts = {"language": config.text_config, "vision": config.vision_config}
    chosen = {name: str(part._attn_implementation) for name, part in parts.items()}
    if len(set(chosen.values())) == 1:
        return chosen["language"]
    return ", ".join(f"{name} {attn}" for name, attn in chosen.items())


def data_fingerprint(unit_sets: Sequence[UnitSet]) -> dict[str, str]:
    """Digests by dataset, task and split."""
    return {f"{u.dataset}/{u.task}/{u.split}": u.sha256 for u in unit_sets}


def what_it_reads(mlm: Any, unit_sets: Sequence[UnitSet]) -> tuple[Any, ...]:
    """What ranks of a launch must have alike; of weights the sizes, for hashing them takes long."""
    sizes = [(file.name, file.stat().st_size) for file in mlm.weights.files]
    adapter = None if mlm.adapter is None else mlm.adapter.sha256
    return data_fingerprint(unit_sets), sizes, adapter, versions()


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each field in which two fingerprints differ, as `field: then ..., now ...`."""
    old, new = flat(then), flat(now)
    return [
        f"{key}: then {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def not_recorded(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Fields of a model's fingerprint that an older kvfix did not write."""
    return [key for key in LATER if "weights" in then and key in now and key not in then]


def flat(item: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, so that a difference is named and nothing else is printed."""
    out: dict[str, Any] = {}
    for key, value in item.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def start_card(command: str, host: dict[str, Any]) -> dict[str, Any]:
    """One start of a run, with what of the machine (`host`) moves last bits of a score."""
    return {
        "time": datetime.now(UTC).isoformat(),
        "command": command,
        "versions": versions(),
        "host": {"processor": processor_name(), **host},
    }


def mixed(starts: Sequence[Any]) -> list[str]:
    """What differs between the first and any later start in versions and host, in words."""
    cards = [_what_may_mix(start) for start in starts if isinstance(start, dict)]
    found: dict[str, None] = {}
    for now in cards[1:]:
        then = cards[0]
        for key in sorted(then.keys() & now.keys()):  # what one did not record is unknown
            if then[key] != now[key]:
                found.setdefault(f"{key} {then[key]} and {now[key]}")
    return list(found)


def _what_may_mix(start: dict[str, Any]) -> dict[str, str]:
    packages, host = start.get("versions"), start.get("host")
    named = dict(packages) if isinstance(packages, dict) else {}
    if isinstance(host, dict):
        named |= {key: host[key] for key in HOST if key in host}
    return {str(key): str(value) for key, value in named.items()}


def versions() -> dict[str, str]:
    """Python, kvfix and the packages whose version can move a number."""
    out = {"python": platform.python_version(), "kvfix": kvfix.__version__}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue
    return out


def processor_name() -> str:
    """Model of the CPU as it calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or platform.machine()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
