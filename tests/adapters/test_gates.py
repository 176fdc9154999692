"""An adapter with a gate, which kvfix once wrote and no longer applies, is loaded by nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kvfix.adapters.folder import find
from kvfix.adapters.load import restore


def test_a_gate_is_refused_by_every_loader(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"bias": torch.zeros(1, 2)}, tmp_path / "kvfix_gate.safetensors")
    for load in (lambda: find(str(tmp_path)), lambda: restore(torch.nn.Identity(), tmp_path)):
        with pytest.raises(ValueError, match=r"found kvfix_gate\.safetensors beside it"):
            load()
