"""The number format that a processor computes in without detours."""

from __future__ import annotations

import platform
from typing import Any

import torch


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; without them it takes thrice as long."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def native_dtype(config: Any, device: str) -> str | torch.dtype:
    """float32 for a checkpoint in bfloat16 on a CPU without it; else "auto", the checkpoint's own.

    A quantised checkpoint keeps what it was quantised for.
    """
    if (
        config.dtype != torch.bfloat16
        or getattr(config, "quantization_config", None) is not None
        or torch.device(device).type != "cpu"
        or has_bfloat16()
    ):
        return "auto"
    return torch.float32
