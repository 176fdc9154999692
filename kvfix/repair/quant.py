"""What combines with what: quantisation of the base, adapter and ZeRO stage.

Each refusal is one line that says what to change. Of what is allowed these were tried on CPUs, four
float32 steps with losses equal to 1e-5 (peft 0.21.2, deepspeed 0.19.8, bitsandbytes 0.50.2), every
rank with the same batch:

| setup | one process, stages | two ranks, stages |
|---|---|---|
| LoRA | 0, 2, 3 | not tried |
| DoRA | 0, 2, 3 | 2, 3 |
| nf4 + LoRA | 0, 2, 3 | 2, 3 |
| nf4 + DoRA | 0, 2 | 1, 2 |

Parameter offload, which means nothing without a GPU, is DeepSpeed's word. What is refused fails, or
is known to train on in silence on wrong numbers, or was not tried.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

STAGES = (0, 1, 2, 3)


class Setup(NamedTuple):
    """One way to train."""

    quant: str | None = None  # of the base's language model: None, "nf4" or "int8"
    zero: int = 0  # ZeRO stage; 0 is plain data parallel or one process
    offload_params: bool = False  # ZeRO-3 parameters on the CPU
    dora: bool = False  # DoRA instead of LoRA
    # What nf4 weights are kept in; ZeRO-3 partitions only floating tensors.
    storage: torch.dtype | None = None
    compute: torch.dtype | None = None  # data type of activations


def refusal(setup: Setup) -> str | None:
    """Why this cannot be trained, in one line; None if it can."""
    s = setup
    if s.zero not in STAGES:
        return f"expected ZeRO stage 0, 1, 2 or 3, found {s.zero}"
    if s.quant not in (None, "nf4", "int8"):
        return (
            f"weights quantised by {s.quant} can be read, not trained; take the unquantised model, "
            "with quant=nf4 for less memory"
        )
    if s.offload_params and s.zero != 3:
        return (
            f"parameter offload needs ZeRO stage 3, found stage {s.zero}; offload the optimizer, "
            "or set zero=3"
        )
    if s.quant == "int8":
        # At ZeRO-3 it trains on in silence with a loss ten times too high
        # (bitsandbytes#1451, open at 0.50).
        return "int8 is for diagnosis only; train with quant=nf4, or without"
    if s.quant == "nf4" and s.dora and s.zero == 3:
        # DoRA's norm copies the nf4 layer, and the copy is no longer a partitioned parameter:
        # AttributeError, no 'ds_status' (peft 0.21.2, deepspeed 0.19.8).
        return "DoRA on nf4 weights does not combine with ZeRO stage 3; set zero=2, or dora=false"
    if s.quant == "nf4" and s.offload_params:
        # Not tried on a GPU, and reported broken for int8 (accelerate#3730).
        return "parameter offload of nf4 weights is not supported; offload the optimizer alone"
    if s.quant == "nf4" and s.zero == 3 and s.storage != s.compute:
        return (
            f"nf4 under ZeRO stage 3 needs bnb_4bit_quant_storage equal to the compute type "
            f"{s.compute}, found {s.storage}; load the unquantised model with quant=nf4, or set "
            "zero=2"
        )
    return None


def check_setup(setup: Setup) -> None:
    """Refuse, in one line, a setup that would fail or, worse, not train what it says."""
    why = refusal(setup)
    if why is not None:
        raise ValueError(why)
