"""What must be the same for a training to go on: its config field by field, and hashes of the rest.

The fingerprint lies in every checkpoint, so that it is compared with what the checkpoint is of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from kvfix.checkpoint.folder import sha256_of
from kvfix.mlm.load import Mlm
from kvfix.runs.fingerprint import flat
from kvfix.wording import shown

FINGERPRINT = "fingerprint.json"
MEND = "choose another out="
# What moves no weight, and names of what is known by its hash. `steps` may grow.
FREE = (
    *("out", "resume", "stop_at", "save_every", "save_minutes", "keep"),
    *("log_every", "report_to", "workers", "threads", "model", "data", "adapter"),
    *("images", "processor", "verify"),
)
_SHOWN = 6  # fields that differ, in a message


def fields_of(config: Any) -> dict[str, Any]:
    """Every field of a config that moves a weight, by its dotted name."""
    return {k: _plain(v) for k, v in flat(asdict(config)).items() if k not in FREE}


def check_same(out: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on where a field of the earlier starts' fingerprint differs from this one's."""
    differ = []
    for name, value in now.items():
        before = then.get(name, value)  # a field of a later kvfix: nobody could have set it
        if before == _plain(value) or (name == "steps" and value >= before):
            continue
        differ.append(f"{name}: then {_short(before)}, now {_short(value)}")
    if differ:
        more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        raise ValueError(
            f"{out} holds a training of something else: {'; '.join(differ[:_SHOWN])}{more}; set "
            f"what it had to go on with it, or {MEND}"
        )


def adapter_fields(adapter: str) -> dict[str, Any]:
    """Of the adapter that training starts from."""
    if not adapter:
        return {"adapter.sha256": ""}
    return {"adapter.sha256": sha256_of(sorted(Path(adapter).glob("*.safetensors")))}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}..."  # a hash
    return f"{value:g}" if isinstance(value, float) else shown(value)


class Identity:
    """The fingerprint of a start; the rank that writes it has begun to hash the weights."""

    def __init__(self, known: Mapping[str, Any], mlm: Mlm):
        self._known, self._mlm = dict(known), mlm

    @property
    def ready(self) -> bool:
        """Whether the weights have been hashed."""
        return self._mlm.weights.hashed

    def fields(self) -> dict[str, Any]:
        """All of it; waits for what is still being read."""
        return self._known | self._read

    @cached_property
    def _read(self) -> dict[str, Any]:
        """Of the base model and its processor; reads all weights: half a minute for 16 GB."""
        mlm = self._mlm
        return {
            "model.sha256": mlm.sha256,
            "model.config": sha256_of([mlm.weights.folder / "config.json"]),
            "processor.sha256": mlm.processor_sha256,
        }

    def write(self, folder: Path) -> None:
        """Into a checkpoint."""
        text = json.dumps(self.fields(), indent=1)
        (folder / FINGERPRINT).write_text(text + "\n", encoding="utf-8")
