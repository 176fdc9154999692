"""A diagnosis holds one model at a time: the control's weights come when the model's are gone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvfix.diagnose.run import diagnose
from kvfix.session import ModelOptions, Options
from kvfix.terminal import RichWatch


def test_the_model_is_let_go_before_the_control_is_loaded(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, load_random = ModelOptions.load, ModelOptions.load_random
    models: list[weakref.ref[Any]] = []
    alive: list[list[bool]] = []

    def noted(self: ModelOptions) -> Any:
        mlm = load(self)
        models.append(weakref.ref(mlm.base))
        return mlm

    def looked(self: ModelOptions, seed: int) -> Any:
        alive.append([model() is not None for model in models])
        return load_random(self, seed)

    monkeypatch.setattr(ModelOptions, "load", noted)
    monkeypatch.setattr(ModelOptions, "load_random", looked)
    options = Options(
        model=str(checkpoint("llava_onevision")),
        tasks=("semantic_correspondence",),
        only=("flow",),
        limit=2,
        out=tmp_path / "run",
        device="cpu",
    )
    gc.disable()  # nothing but the diagnosis itself may free it
    try:
        diagnose(options, command="kvfix diagnose", watch=RichWatch())
    finally:
        gc.enable()
    assert alive == [[False]]
