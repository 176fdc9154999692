"""Rates of a training."""

from __future__ import annotations

import time

import pytest
import torch

from kvfix.repair.train import speed


def test_rates_are_counts_over_seconds_and_start_anew() -> None:
    clock = speed.Clock(1000, torch.device("cpu"))
    clock.waited, clock.images = 0.01, 4
    time.sleep(0.05)
    first = clock.read(8, 100, 2)
    assert first["seconds"] >= 0.05 and "mfu" not in first  # no peak is known of a CPU
    assert first["images_per_s"] == pytest.approx(8 / first["seconds"])
    assert first["tokens_per_s"] == pytest.approx(100 / first["seconds"])
    assert first["data_wait"] == pytest.approx(0.01 / first["seconds"])
    assert clock.images == clock.waited == 0
    assert clock.read(1, 1, 1)["seconds"] < first["seconds"]


def test_utilisation_by_hand(monkeypatch) -> None:
    """A billion parameters, 1,000 tokens in a second on two H100: 4e12 of 1978e12 FLOP."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    clock = speed.Clock(10**9, torch.device("cuda"))
    moments = iter((1.0, 1.0))
    clock._start = 0.0
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(moments))
    assert clock.read(1, 1000, 2)["mfu"] == pytest.approx(4e12 / (2 * 989e12))
    assert speed.peak_flops("Some CPU") is None
