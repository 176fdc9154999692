"""LoRA on the language model, the projector and the vision tower, each by its own anchored regex.

The order of a training: `attach`, then heads (`get_peft_model` freezes what hangs on the model
before it), then `parameter_groups`, then the optimizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from kvfix.adapters.patterns import Pattern
from kvfix.adapters.ties import settle, untie
from kvfix.bounds import check_numbers, number
from kvfix.checkpoint.quantised import quantised
from kvfix.mlm.load import Mlm
from kvfix.repair.quant import Setup, check_setup

PARTS = ("lm", "projector", "vision")
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraOptions:
    """What the adapter changes, and how."""

    parts: tuple[str, ...] = ("lm",)  # any of "lm", "projector", "vision"
    # A further regex on full module names, for instance `.*[kv]_proj`; empty is none.
    only: str = ""
    rank: int = number(16, least=1)  # of each update
    # The update is scaled by alpha / rank (alpha / sqrt(rank) with rslora).
    alpha: float = number(32.0, above=0)
    dropout: float = number(0.0, least=0, below=1)  # of the update's input, in [0, 1)
    rslora: bool = False  # rank-stabilised scaling (arXiv 2312.03732)
    dora: bool = False  # magnitude and direction apart (arXiv 2402.09353)

    def __post_init__(self) -> None:
        check_numbers(self)
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts or len(set(self.parts)) != len(self.parts):
            raise ValueError(
                f"expected parts out of {', '.join(PARTS)}, each once, found {list(self.parts)}"
            )
        Pattern(self.only, what="only")


@dataclass(frozen=True)
class Rates:
    """Learning rates by part; the adapter's of a part that it does not change has no effect."""

    lm: float = number(2e-4, least=0)  # of the language model's adapter
    projector: float = number(1e-4, least=0)  # of the projector's
    vision: float = number(5e-5, least=0)  # of the vision tower's
    heads: float = number(1e-3, least=0)  # of the heads that losses read values through
    # Of the heads alone: decaying an adapter pulls it to the base model, which the anchors do
    # better.
    weight_decay: float = number(0.0, least=0)

    def __post_init__(self) -> None:
        check_numbers(self)


class LoraReport(NamedTuple):
    """What `attach` did."""

    modules: dict[str, tuple[str, ...]]  # names of the changed modules, by part
    trainable: dict[str, int]  # parameters by part
    total: int  # parameters of the model, the adapter's included

    @property
    def share(self) -> float:
        """Trainable share of all parameters, in [0, 1]."""
        return sum(self.trainable.values()) / self.total

    def lines(self) -> list[str]:
        """For the terminal: one line a part and one for all."""
        lines = [
            f"{part}: {len(names)} modules, {self.trainable[part]:,} trainable "
            f"({names[0]} ... {names[-1]})"
            for part, names in self.modules.items()
        ]
        count = sum(self.trainable.values())
        return [*lines, f"trainable {count:,} of {self.total:,} parameters ({self.share:.3%})"]


class Attached(NamedTuple):
    """A model with a fresh adapter."""

    mlm: Mlm  # what to train
    report: LoraReport  # what was matched


def match_modules(mlm: Mlm, options: LoraOptions) -> dict[str, tuple[str, ...]]:
    """Names of the modules that the adapter would change, by part; a part has one at least."""
    linear = [name for name, module in mlm.base.named_modules() if isinstance(module, nn.Linear)]
    modules = {}
    for part in options.parts:
        names = [name for name in linear if re.fullmatch(mlm.lora_targets(part), name)]
        if options.only:
            names = Pattern(options.only, what="only").matching(names)
        modules[part] = tuple(names)
        if not names:
            only = f" and only={options.only!r}" if options.only else ""
            raise ValueError(
                f"expected modules of the {part} to adapt, found none that match "
                f"{mlm.lora_targets(part)!r}{only}"
            )
    return modules


def _targets(mlm: Mlm, options: LoraOptions, modules: dict[str, tuple[str, ...]]) -> str:
    """A regex for PEFT, which matches full names with `re`; never one that a user wrote."""
    if not options.only:
        return mlm.lora_targets(*options.parts)
    return "|".join(re.escape(name) for names in modules.values() for name in names)


def attach(mlm: Mlm, options: LoraOptions, *, zero: int = 0, seed: int = 0) -> Attached:
    """Put a fresh adapter on a loaded model, wrapped in place; everything else is frozen.

    It then gives what it gave before, as `lora_B` starts at zero. Use the returned model from now
    on. The global random state is left as it was. A combination that cannot be trained under ZeRO
    stage `zero` (see `kvfix.repair.quant`) is a ValueError.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    if hasattr(mlm.model, "peft_config"):
        raise ValueError(
            "expected a model without an adapter, found one; merge it first "
            "(kvfix.repair.lora.merge)"
        )
    found = quantised(mlm.config)
    storage = getattr(torch, found.storage) if found and found.method == "nf4" else None
    check_setup(
        Setup(found and found.method, zero, dora=options.dora, storage=storage, compute=mlm.dtype)
    )
    modules = match_modules(mlm, options)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # a float works and is written as one
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        target_modules=_targets(mlm, options, modules),
        bias="none",
    )
    # Drawn on the CPU: asking for the state of every GPU would set each of them up.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = get_peft_model(mlm.base, config)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            _multiply_in_bfloat16(layer)
    tuned = replace(mlm, model=model)
    trainable = dict.fromkeys(modules, 0)
    for part, _, parameter in adapter_parameters(tuned, modules):
        trainable[part] += _numel(parameter)
    total = model.get_nb_trainable_parameters()[1]
    return Attached(tuned, LoraReport(modules, trainable, total))


def _multiply_in_bfloat16(layer: Any) -> None:
    """Let the float32 adapter of a layer that computes in bfloat16 do so, too.

    PEFT alone copies the layer's input to float32, multiplies there, and keeps the copy for the
    backward pass. Weights and gradients of the adapter stay float32. Autocast is on for this layer
    alone: elsewhere it would change what the model computes, and with it the base's own answers.
    """
    forward = layer.forward

    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x.dtype != torch.bfloat16 or _kept_in(layer) != torch.float32:
            return forward(x, *args, **kwargs)
        layer.cast_input_dtype_enabled = False
        try:
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                return forward(x, *args, **kwargs)
        finally:
            layer.cast_input_dtype_enabled = True

    layer.forward = run


def _kept_in(layer: Any) -> torch.dtype:
    """Data type of an adapter's weights; an engine may have rounded them."""
    return next(layer.lora_A.parameters()).dtype


def adapter_parameters(
    mlm: Mlm, modules: dict[str, tuple[str, ...]]
) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(part, name, parameter) of everything that the adapter trains."""
    part_of = {name: part for part, names in modules.items() for name in names}
    for name, parameter in mlm.model.named_parameters():
        if not parameter.requires_grad:
            continue
        module = name.removeprefix(_PEFT_PREFIX).split(".lora_")[0]
        if module not in part_of:
            raise ValueError(
                f"expected only the adapter to be trainable, found {name}; attach the adapter "
                "before heads, and freeze the rest"
            )
        yield part_of[module], name, parameter


def parameter_groups(
    mlm: Mlm,
    report: LoraReport,
    rates: Rates,
    *,
    heads: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """The optimizer's groups: each trainable parameter in exactly one, under its part's rate.

    The model has no heads hanging on it. Groups have a `name`, for the log; empty parts have none.
    """
    of: dict[str, list[nn.Parameter]] = {part: [] for part in report.modules}
    for part, _, parameter in adapter_parameters(mlm, report.modules):
        of[part].append(parameter)
    of["heads"] = [] if heads is None else list(heads.parameters())
    return [
        {
            "name": name,
            "params": parameters,
            "lr": getattr(rates, name),
            "weight_decay": rates.weight_decay if name == "heads" else 0.0,
        }
        for name, parameters in of.items()
        if parameters
    ]


def merge(mlm: Mlm) -> Mlm:
    """The adapter added into the weights, for serving; the model is changed in place.

    In a process without DeepSpeed: its partitioned weights have nothing to add to. Below float32
    the sum is rounded once more than in training. A quantised base, which would round the adapter
    away, is a ValueError.
    """
    if not hasattr(mlm.model, "merge_and_unload"):
        raise ValueError("expected a model with an adapter to merge, found none")
    if getattr(mlm.config, "quantization_config", None) is not None:
        raise ValueError(
            "expected an unquantised base to merge into, found a quantised one; load the model "
            "again without quant, with the adapter"
        )
    tied = untie(mlm.base)
    model = mlm.model.merge_and_unload(safe_merge=True)
    if tied:
        settle(model)
    return replace(mlm, model=model, adapter=None)


def _numel(parameter: nn.Parameter) -> int:
    """Also of a parameter that ZeRO-3 has partitioned."""
    return getattr(parameter, "ds_numel", parameter.numel())
