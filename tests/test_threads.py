"""Threads wait asleep, a small model gets one, and a CPU without bfloat16 computes in float32."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from kvfix.mlm import native
from kvfix.runs.fingerprint import model_fingerprint
from kvfix.session import ModelOptions, host_of
from kvfix.threads import SMALL, choose_threads, threads_as_before


@pytest.mark.parametrize(("users", "found"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    users: str | None, found: str
) -> None:
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    env |= {} if users is None else {"OMP_WAIT_POLICY": users}
    look = "import os, sys, kvfix; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["False", found], done.stderr


@pytest.mark.parametrize(
    ("parameters", "users", "found"),
    [(SMALL - 1, None, 1), (SMALL, None, 3), (SMALL - 1, "3", 3)],
)
def test_a_small_model_gets_one_thread_unless_the_user_says_otherwise(
    parameters: int, users: str | None, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if users is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", users)
    before = torch.get_num_threads()
    with threads_as_before():
        torch.set_num_threads(3)
        choose_threads(parameters)
        assert torch.get_num_threads() == found
    assert torch.get_num_threads() == before


def test_a_cpu_without_bfloat16_computes_in_float32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "has_bfloat16", lambda: False)
    with threads_as_before():
        found = ModelOptions(device="cpu").load()
        control = ModelOptions(device="cpu").load_random(0)
        saved = ModelOptions(device="cpu", dtype="saved").load()
        asked = ModelOptions(device="cpu", dtype="bfloat16").load()
    assert found.dtype == control.dtype == torch.float32 == found.model.dtype
    assert saved.dtype == asked.dtype == torch.bfloat16
    assert model_fingerprint(found, quant=None)["dtype"] == "float32"
    assert host_of(found)["saved_dtype"] == "bfloat16"
    assert capsys.readouterr().err.count("computing in float32") == 1
    monkeypatch.setattr(native, "has_bfloat16", lambda: True)
    assert native.native_dtype(found.config, "cpu") == "auto"
    assert native.native_dtype(saved.config, "cpu") == "auto"
    monkeypatch.setattr(native, "has_bfloat16", lambda: False)
    assert native.native_dtype(saved.config, "cuda:0") == "auto"
    assert native.native_dtype(saved.config, "cpu") == torch.float32
