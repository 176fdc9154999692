"""The memory of one GPU under each way to train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from kvfix.checkpoint.quantised import Quantised
from kvfix.repair.plan.sizes import WeightBytes
from kvfix.repair.quant import Setup, refusal

OFFLOADS = ("none", "optimizer", "all")  # all: parameters, too
WAYS = ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # stage, place in OFFLOADS


class Memory(NamedTuple):
    """Bytes that each GPU would hold, by what they are for."""

    quant: str | None  # None or "nf4"
    zero: int  # ZeRO stage
    offload: str  # one of OFFLOADS
    weights: int  # frozen
    states: int  # adapter, gradients, optimizer; the largest gathered module at stage 3
    activations: int  # of one step of one micro-batch, logits included
    host: int  # main memory of the node for what is offloaded and for DeepSpeed's buffers
    refusal: str | None  # why this would not be trained, None if it would

    @property
    def total(self) -> int:
        """All bytes of a GPU."""
        return self.weights + self.states + self.activations


class Counted(NamedTuple):
    """What the memory of every way is added up from."""

    weights: WeightBytes  # frozen
    trained: int  # parameters
    largest: int  # parameters of the largest module
    activations: int  # bytes
    gpus: int
    dora: bool
    dtype: torch.dtype  # of activations
    already: Quantised | None  # how the checkpoint is quantised on disk


def memory_of(counted: Counted, quant: str | None, zero: int, offload: int) -> Memory:
    """One way to train: ZeRO stage and place in OFFLOADS."""
    c = counted
    storage = c.dtype if quant else None
    if c.already is not None:
        storage = getattr(torch, c.already.storage)
    setup = Setup(quant, zero, offload == 2, c.dora, storage, c.dtype)
    weights, states, host = c.weights.of(quant), *_states(zero, offload, c)
    if zero == 3:
        weights = math.ceil(weights / c.gpus)
    if offload == 2:
        weights, host = 0, host + c.weights.of(quant)
    return Memory(
        quant=quant,
        zero=zero,
        offload=OFFLOADS[offload],
        weights=weights,
        states=states,
        activations=c.activations + c.weights.unpacked(quant),
        host=host,
        refusal=refusal(setup),
    )


def _states(zero: int, offload: int, counted: Counted) -> Iterator[int]:
    """Bytes on each GPU, then bytes on a node's host, for what is trained."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    trained, gpus = counted.trained, counted.gpus
    if zero < 2:
        moments = 8 * trained
        yield 8 * trained + (moments // gpus if zero else moments)
        yield 0
        return
    if zero == 2:
        host, gpu = estimate_zero2_model_states_mem_needs(
            trained, num_gpus_per_node=gpus, cpu_offload=offload > 0
        )
    else:
        host, gpu, _ = estimate_zero3_model_states_mem_needs(
            trained,
            counted.largest,
            num_gpus_per_node=gpus,
            cpu_offload=offload > 0,
            cpu_offload_params=offload == 2,
        )
    yield gpu
    yield host
