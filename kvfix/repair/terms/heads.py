"""Small trainable modules that losses read values through; thrown away after training.

Under ZeRO-3 a forward pass gathers the parameters of a module from all ranks, and ranks that run
another number of them wait for each other for ever. So each head is called exactly ONCE a step on
every rank: on the cells of all its samples at once, or, without any, through `dummy()`. That one
reads no parameter by itself: outside a module's own pass, reading one gathers it, too.

Shapes: S layers, N cells of all images side by side, B samples, C channels, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_TEMPERATURE = 0.01  # CLIP's bound, too


class Head(nn.Module):
    """What a loss reads values through; `shape` is that of the values that it takes."""

    shape: tuple[int, int] = (1, 1)  # layers, channels

    def dummy(self) -> Tensor:
        """Zero that touches every parameter by a real forward pass."""
        layers, channels = self.shape
        device = next(self.parameters()).device
        return self(torch.ones(layers, 1, channels, device=device)).sum() * 0


class MaskHead(Head):
    """Linear readout of values: one logit a cell and output."""

    def __init__(
        self,
        channels: int,
        layers: int,
        *,
        outputs: int = 1,
        shared: bool = False,
        generator: torch.Generator,
    ):
        """Start as `nn.Linear` does; all zero would give values no gradient in the first step.

        `outputs` are kinds of foreground; `shared` is one weight for all layers instead of one
        each.
        """
        super().__init__()
        bound = 1 / math.sqrt(channels)
        sets = 1 if shared else layers
        self.shape = (layers, channels)
        weight = torch.empty(sets, outputs, channels).uniform_(-bound, bound, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(sets, outputs))

    def forward(self, v_SNC: Tensor) -> Tensor:
        """Values -> logits_SNO, float32."""
        weight = self.weight.expand(len(v_SNC), -1, -1)
        logits_SNO = torch.einsum("snc,soc->sno", v_SNC.to(weight.dtype), weight)
        return (logits_SNO + self.bias[:, None]).float()


class TextProjection(Head):
    """The value of an expression's last token -> a query of unit length over a temperature.

    It starts as the identity: the dot product that reads image values out without any training. The
    temperature is learned, and stays above 0.01.
    """

    def __init__(
        self, channels: int, layers: int, *, shared: bool = False, temperature: float = 0.07
    ):
        super().__init__()
        sets = 1 if shared else layers
        self.shape = (layers, channels)
        self.weight = nn.Parameter(torch.eye(channels).repeat(sets, 1, 1))
        self.raw_temperature = nn.Parameter(_raw(temperature))

    def forward(self, t_SBC: Tensor) -> Tensor:
        """Text values -> queries_SBC, float32."""
        out_SBC = t_SBC.to(self.weight.dtype) @ self.weight.mT
        return F.normalize(out_SBC.float(), dim=-1) / _temperature(self.raw_temperature)


class Temperature(Head):
    """Unit features -> over a learned temperature."""

    def __init__(self, temperature: float = 0.07):
        super().__init__()
        self.raw_temperature = nn.Parameter(_raw(temperature))

    def forward(self, unit: Tensor) -> Tensor:
        """Any shape, float32 out."""
        return unit.float() / _temperature(self.raw_temperature)


def _raw(temperature: float) -> Tensor:
    """What `_temperature` turns into `temperature`; (1,), as DeepSpeed cannot send 0-d tensors."""
    if not temperature > LEAST_TEMPERATURE:
        raise ValueError(f"expected a temperature above {LEAST_TEMPERATURE}, found {temperature}")
    return torch.tensor([math.log(temperature - LEAST_TEMPERATURE)])


def _temperature(raw: Tensor) -> Tensor:
    # Not clamped: beyond a clamp the gradient is 0 and the parameter never comes back.
    return LEAST_TEMPERATURE + raw.float().exp()


def check_trained(module: nn.Module, groups: Iterable[dict]) -> None:
    """See to it that training can move every parameter of the heads.

    `get_peft_model` freezes what hangs on the model already; then the loss stands still, or falls
    by the adapter alone, and nothing says so.
    """
    held = {id(parameter) for group in groups for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(
                f"{name}: expected a trainable parameter, found it frozen; make heads after the "
                "adapter, not before"
            )
        if id(parameter) not in held:
            raise ValueError(
                f"{name}: expected a parameter of the optimizer, found it in no group; give the "
                "heads to parameter_groups"
            )
