"""The look at every training step: is all of it finite, does somebody want it saved or stopped?

What one step found travels around the ranks with the amounts of the next one, in the reduction that
is there anyway, and is read at the end of that next step: no step waits for its device, and all
ranks decide the same at the same place.

Shapes: T loss terms; F flags, the terms' first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

GRADIENT, WEIGHTS = "the gradient's norm", "a trained weight"


class Diverged(ValueError):
    """A loss, a gradient or a weight that is not finite; the message says which, and when.

    `rates` are the learning rates of that step by group of parameters.
    """

    def __init__(self, step: int, what: Sequence[str], rates: dict[str, float]):
        self.rates = rates
        shown = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
        super().__init__(
            f"step {step}: expected finite numbers, found NaN or infinity in {' and '.join(what)}, "
            f"at learning rates of {shown}"
        )


class Asked(NamedTuple):
    """What some rank wants at the end of a step."""

    stop: bool
    save: bool


class Guard:
    """Collects flags of one step while the next one is under way."""

    def __init__(self, names: Sequence[str], trained: Sequence[nn.Parameter]):
        self._what = (*(f"the loss `{name}`" for name in names), GRADIENT, WEIGHTS)
        self._trained = trained
        self._total_T: Tensor | None = None
        self._norm: Any = None
        self._step, self._rates = 0, dict[str, float]()
        self._sent: _Late | None = None
        self._sent_of: tuple[int, dict[str, float]] = (0, {})

    def begin(self) -> None:
        """Before the first micro-batch of a step."""
        self._total_T, self._norm = None, None

    def add(self, table_T2: Tensor) -> None:
        """Totals of a micro-batch; a sum stays without end where one of its parts is."""
        total_T = table_T2[:, 0]
        self._total_T = total_T if self._total_T is None else self._total_T + total_T

    def end(self, step: int, rates: dict[str, float]) -> None:
        """After the last backward pass of a step (1-based), which the optimizer takes under these
        rates.
        """
        self._step, self._rates = step, rates

    def norm(self, norm: Any) -> None:
        """The gradient's, where it is known: a tensor of the device, a float, or None."""
        self._norm = norm

    def flags(self, device: torch.device, *, stop: bool = False, save: bool = False) -> Tensor:
        """(F,) of this rank: 1 where the last step was not finite, and what is asked for."""
        zero = torch.zeros(1, device=device)
        terms_T = torch.zeros(len(self._what) - 2, device=device)
        if self._total_T is not None:
            terms_T = _unbounded(self._total_T)
        norm_1 = zero if self._norm is None else _unbounded(torch.as_tensor(self._norm).reshape(1))
        weights_1 = _unbounded(_norm_of(self._trained).reshape(1))
        asked_2 = torch.tensor([stop, save], dtype=torch.float32).to(device, non_blocking=True)
        return torch.cat([terms_T, norm_1.to(device), weights_1.to(device), asked_2])

    def send(self, flags_F: Tensor) -> None:
        """Remember all ranks' flags of the last step, to be read later."""
        self._sent, self._sent_of = _Late(flags_F), (self._step, self._rates)

    def read(self) -> Asked:
        """What was sent; Diverged on every rank, whichever found it."""
        if self._sent is None:
            return Asked(False, False)
        *found, stop, save = self._sent.values()
        self._sent = None
        what = [name for name, flag in zip(self._what, found, strict=True) if flag != 0]
        if what:
            raise Diverged(self._sent_of[0], what, self._sent_of[1])
        return Asked(stop != 0, save != 0)


def _unbounded(x: Tensor) -> Tensor:
    return (~torch.isfinite(x.detach())).float()


def _norm_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Of this rank's share of all of them: one number that is finite only if they all are."""
    shares = [_share(p).detach() for p in parameters]
    return get_total_norm([share for share in shares if share.numel()])


def _share(parameter: Any) -> Tensor:
    """All of it, or what ZeRO-3 keeps beside the parameter, which is empty between its uses."""
    share = getattr(parameter, "ds_tensor", None)
    if share is None:
        return parameter
    # Shares are equally long: the last ones end in memory that nothing was ever written to.
    mine = parameter.ds_numel - dist.get_rank() * share.numel()
    return share.flatten()[: max(mine, 0)]


class _Late:
    def __init__(self, x: Tensor):
        self._x, self._event = x.to("cpu", non_blocking=True), None
        if x.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def values(self) -> list[float]:
        """Wait for it, which by now is over as a rule."""
        if self._event is not None:
            self._event.synchronize()
        return self._x.tolist()
