"""The hash of a checkpoint's weights is made beside the loading, once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kvfix.checkpoint import folder
from kvfix.mlm.load import load_mlm


def test_hashing_goes_on_while_the_model_is_loaded(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loaded = checkpoint("llava_onevision"), threading.Event()
    hashed, times = folder.sha256_of, []

    def slow(files: tuple[Path, ...]) -> str:
        times.append(threading.current_thread() is not threading.main_thread())
        assert loaded.wait(60)  # a hash that loading waited for would never be made
        return hashed(files)

    monkeypatch.setattr(folder, "sha256_of", slow)
    mlm = load_mlm(str(model), device="cpu", recorded=True)
    loaded.set()
    whole = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(model.glob("*.safetensors"))))
    assert mlm.sha256 == mlm.sha256 == whole.hexdigest()
    assert times == [True]


def test_a_file_that_cannot_be_read_is_an_error_where_the_hash_is_asked_for(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    found = folder.find(str(checkpoint("llava_onevision")), weights=True)
    gone = folder.Weights(tmp_path, (tmp_path / "gone.safetensors",), found.config, None, None)
    gone.begin_hashing()
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        gone.sha256()
