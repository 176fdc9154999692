"""What every command that runs a model shares: how it is asked for, who watches, what it took."""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from kvfix.adapters import AdapterWarning
from kvfix.data.units import UnitSet
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.eval.source import NEUTRAL, Clips, clips_fingerprint
from kvfix.eval.suite import PROTOCOL
from kvfix.findings import Finding
from kvfix.launchers import local_rank, local_ranks
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.ranks import check_alike, is_first, ranks
from kvfix.runs.fingerprint import data_fingerprint, model_fingerprint, what_it_reads
from kvfix.runs.folder import RunFolder, data_card, model_card
from kvfix.runs.rows import Result
from kvfix.shipped import nano_dir
from kvfix.terminal import note
from kvfix.threads import choose_threads


@dataclass(frozen=True)
class ModelOptions:
    """How a command line asks for a model."""

    model: str | None = None  # hub id or folder; None: the shipped nano
    adapter: str | None = None  # PEFT folder or hub id
    force_adapter: bool = False  # although it was trained on another model
    # auto: the checkpoint's own, or float32 where a CPU has no bfloat16; saved: its own in any case
    dtype: str = "auto"
    device: str | None = None
    quant: str | None = None
    attn: str | None = None
    processor: str | None = None  # hub id or folder; None: the checkpoint's own

    @property
    def name(self) -> str:
        """What a person calls the model."""
        return self.model or "the shipped nano"

    @property
    def own_device(self) -> str | None:
        """The device of this rank: ranks of one machine take a GPU each.

        Raises:
            ValueError: `auto` for several ranks of one machine, which would all take all GPUs.
        """
        if ranks() == 1 or not torch.cuda.is_available():
            return self.device
        if self.device == "auto" and local_ranks() > 1:
            raise ValueError(
                f"--device auto: expected one rank on each machine, found {local_ranks()}, each of "
                "which would spread its model over all GPUs; start one rank on a machine "
                "(--nproc_per_node 1)"
            )
        if self.device in (None, "cuda"):
            return f"cuda:{local_rank() % torch.cuda.device_count()}"
        return self.device

    @property
    def one_device(self) -> str | None:
        """Controls and reference encoders are not spread over devices."""
        return None if self.device == "auto" else self.own_device

    def load(self) -> Mlm:
        """The model with its adapter; raises as `load_mlm`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AdapterWarning)  # shown below, as lines of ours
            mlm = load_mlm(
                self.model or str(nano_dir()),
                adapter=self.adapter,
                force_adapter=self.force_adapter,
                dtype=self._dtype(),
                device=self.own_device,
                quant=self.quant,
                attn=self.attn,
                processor=self.processor,
                recorded=is_first(),
            )
        for text in mlm.warnings:
            note(text)
        if mlm.dtype == torch.float32 and saved_dtype(mlm) == "bfloat16" and self.dtype == "auto":
            note("computing in float32: this CPU has no instructions for the checkpoint's bfloat16")
        if mlm.device.type == "cpu":
            choose_threads(sum(p.numel() for p in mlm.base.parameters()))
        return mlm

    def load_random(self, seed: int) -> Mlm:
        """The control: the architecture alone, without adapter or quantised weights."""
        return load_mlm(
            self.model or str(nano_dir()),
            dtype=self._dtype(),
            device=self.one_device,
            attn=self.attn,
            processor=self.processor,
            random_weights=seed,
        )

    def _dtype(self) -> str | torch.dtype:
        return {"auto": "native", "saved": "auto"}.get(self.dtype) or getattr(torch, self.dtype)


@dataclass(frozen=True)
class RunOptions(ModelOptions):
    """What the command lines of `kvfix eval` and `kvfix diagnose` can both say."""

    data: tuple[str, ...] = ("scenes",)  # NAME or NAME=DIR
    tasks: tuple[str, ...] = ()  # empty: every task the data offers
    limit: int | None = None  # units a task
    out: Path = Path("runs/eval")
    heads: bool = False  # every KV head apart
    clips: Clips = "frames"  # how clips are read
    seed: int = 0
    mcq: McqProtocol = field(default_factory=McqProtocol)

    def fingerprint(self, mlm: Mlm, unit_sets: Sequence[UnitSet]) -> dict[str, Any]:
        """What moves a score of either; samples of another fingerprint are never mixed in."""
        return model_fingerprint(mlm, quant=self.quant) | {
            **clips_fingerprint(mlm, self.clips),
            "heads": self.heads,
            "prompt": NEUTRAL,
            "protocol": PROTOCOL,
            "mcq": asdict(self.mcq),
            "seed": self.seed,
            "data": data_fingerprint(unit_sets),
        }


PARTS = ("flow", "keys", "prefix", "surfacing")


@dataclass(frozen=True)
class Options(RunOptions):
    """What the command line of `kvfix diagnose` can say."""

    only: tuple[str, ...] = PARTS  # which diagnoses
    out: Path = Path("runs/diagnose")
    reference_encoder: str | None = None
    control: bool = True  # the same architecture with random weights


class Watch(Protocol):
    """Who is told how far a run is."""

    def say(self, text: str) -> None:
        """Tell what begins."""

    def phase(
        self, name: str, total: int | None = None
    ) -> AbstractContextManager[Callable[[str], None]]:
        """Show a phase of `total` units, if they are known; yields what to call after each."""


@dataclass
class Part:
    """What one of several diagnoses adds to the record of a run."""

    results: list[Result] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    overlays: list[dict[str, Any]] = field(default_factory=list)
    entries: dict[str, Any] = field(default_factory=dict)  # further keys of run.json
    notes: list[str] = field(default_factory=list)  # what was not measured, and why
    failed: bool = False  # more than 5 % of a task's units were left out


def saved_dtype(mlm: Mlm) -> str | None:
    """The number format of the checkpoint's weights, as its config names it."""
    config = mlm.weights.config
    return config.get("dtype") or config.get("torch_dtype")


def host_of(mlm: Mlm) -> dict[str, Any]:
    """What of the machine moves the last bits of a score, beside its processor."""
    cuda = mlm.device.type == "cuda"
    return {
        "accelerator": torch.cuda.get_device_name(mlm.device) if cuda else None,
        "threads": torch.get_num_threads(),
        "threads_set_by": "user" if "OMP_NUM_THREADS" in os.environ else "kvfix",
        "saved_dtype": saved_dtype(mlm),
        "ranks": ranks(),
    }


def peak_memory_mib() -> float:
    """Most memory this process ever held, resident and on the accelerator together."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return round(resident + device, 1)


def begin(
    options: RunOptions,
    mlm: Mlm,
    unit_sets: Sequence[UnitSet],
    *,
    kind: str,
    command: str,
    moves: dict[str, Any],
    record: dict[str, Any],
    host: dict[str, Any] | None = None,
) -> RunFolder | None:
    """The folder of a run, once all ranks have read the same; the first rank alone writes it.

    `moves` are further settings of this kind of run that move a score, `record` further entries of
    its run.json; `host` is what `RunFolder` takes, None that of the loaded model.
    """
    check_alike("data, model files and packages", what_it_reads(mlm, unit_sets))
    if not is_first():
        return None
    fingerprint = options.fingerprint(mlm, unit_sets) | moves
    host = host_of(mlm) if host is None else host
    folder = RunFolder(options.out, kind=kind, command=command, fingerprint=fingerprint, host=host)
    folder.save(
        seed=options.seed,
        model=model_card(mlm),
        data=data_card(unit_sets),
        resumed=folder.resumed,
        **record,
    )
    return folder
