"""A GPU that is none: tensors of device `pretend` count on the CPU and refuse what a GPU's refuse.

    with pretend_gpu():
        mlm = on_gpu(load_mlm(folder, device="cpu"))
        ...

Refused are numpy, an operation on tensors of two devices (a single number of the CPU may take part,
and index a tensor of the GPU), and a generator of the CPU. So a tensor whose device was taken for
granted is found on a machine without a GPU.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
# A tensor of the CPU may be the index.
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
ACROSS = (aten.copy_.default, aten._to_copy.default)


class OnGpu(torch.Tensor):
    """A tensor of the pretended GPU, around the one that holds its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGpu:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="pretend:0",
        )

    def __init__(self, held: torch.Tensor):
        self.held = held

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held!r})"

    def tolist(self) -> Any:
        """As any tensor's, which refuses subclasses."""
        return self.held.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees what makes tensors, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Moved(TorchFunctionMode):
    """`torch.tensor` moves what it has made where no dispatch sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.new_tensor:
            like, data = args
            return torch.tensor(data, **{"dtype": like.dtype, **kwargs}).to(like.device)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.__getitem__:  # a list of numbers becomes a tensor out of sight
            x, at = args
            at = tuple(map(_listed, at)) if isinstance(at, tuple) else _listed(at)
            return func(x, at)
        return func(*args, **kwargs)


def _listed(index: Any) -> Any:
    return torch.tensor(index) if isinstance(index, list) else index


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    mine = [x for x in flat if isinstance(x, OnGpu)]
    asked = kwargs.get("device")
    there = bool(mine) if asked is None else torch.device(asked).type == "pretend"
    if not mine and not there:
        return func(*args, **kwargs)
    if func is aten._fused_sdp_choice.default:
        return 0  # by plain mathematics
    if asked is None and func not in ACROSS:
        _check(func, args, flat)
    if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in flat):
        raise RuntimeError(f"{func}: expected a generator of the GPU, found one of the CPU")
    if func is aten.copy_.default:
        there = isinstance(args[0], OnGpu)
    held_args, held = tree_map(_held, args), tree_map(_held, kwargs)
    if asked is not None:
        held["device"] = torch.device("cpu")
    out = func(*held_args, **held)
    if there:
        out = tree_map(lambda x: OnGpu(x) if isinstance(x, torch.Tensor) else x, out)
    if not mine or asked is not None:
        return out
    return return_and_correct_aliasing(func, args, kwargs, out)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnGpu) else x


def _check(func: Any, args: Any, flat: list[Any]) -> None:
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    others = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim]
    if func.overloadpacket in INDEXED:
        others = [x for x in (args[0], *args[2:]) if any(x is other for other in others)]
    if others:
        raise RuntimeError(
            f"{func}: expected all tensors on one device, found the GPU and the CPU "
            f"{[tuple(x.shape) for x in others]}"
        )


@contextmanager
def pretend_gpu() -> Iterator[None]:
    """Let tensors be made there and moved there; the process knows the device from then on."""
    if not hasattr(torch, "pretend"):
        _setup_privateuseone_for_python_backend("pretend")
    with _Mode(), _Moved():
        yield


def on_gpu(mlm: Any) -> Any:
    """The same model with its weights on the pretended GPU."""
    put(mlm.base)
    return mlm


def put(module: nn.Module) -> nn.Module:
    """Move every weight and buffer, in place."""
    done: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                moved = done.setdefault(
                    id(weight), nn.Parameter(OnGpu(weight.data), weight.requires_grad)
                )
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnGpu(buffer)
    return module


def in_child(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, in a forked process, which then knows the pretended device."""
    reads, writes = os.pipe()
    if not (child := os.fork()):
        try:
            said = {"value": make()}
        except BaseException:
            said = {"error": traceback.format_exc()}
        with os.fdopen(writes, "w") as stream:
            json.dump(said, stream)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as stream:
        said = json.load(stream)
    os.waitpid(child, 0)
    assert "error" not in said, said["error"]
    return said["value"]


def somewhere(device: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns on a real GPU, or in a child process that pretends one."""
    if device == "cuda":
        return make()

    def pretended() -> dict[str, Any]:
        with pretend_gpu():
            return make()

    return in_child(pretended)
