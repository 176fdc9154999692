"""Whether an adapter's keys are the model's: none may be missing, none unexpected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvfix.adapters.folder import Adapter
from kvfix.adapters.naming import Naming
from kvfix.wording import shown


def check_keys(file: Path, missing: list[str], unexpected: list[str]) -> None:
    """Refuse a file whose keys are not the model's, by what PEFT says of a load."""
    for what, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            example = shown(min(keys).replace(".default", ""), 120)
            raise ValueError(
                f"{file}: expected the adapter's keys to be this model's, found {len(keys)} "
                f"{what}: {example}; was it trained on another model, or with other settings?"
            )


def check_biases(adapter: Adapter, wrapped: Any, naming: Naming) -> None:
    """Refuse a file without the biases that the settings say were trained; PEFT would not."""
    if adapter.settings.get("bias", "none") == "none":
        return
    from peft import get_peft_model_state_dict

    found = {
        f"base_model.model.{naming.now(x.removeprefix('base_model.model.'))}"
        for x in adapter.tensors.shapes
    }
    saved = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    check_keys(adapter.file, [x for x in saved if x.endswith(".bias") and x not in found], [])
