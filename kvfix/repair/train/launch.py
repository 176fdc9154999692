"""What a training needs around it: ranks, a backend, a DeepSpeed config, a compiler.

Both `deepspeed recipes/x.py` and `python recipes/x.py` start; the second is one process.

When a rank dies, its launcher ends the others. Without a launcher they notice by themselves: gloo
(CPU) at once, as the connection closes; NCCL (GPU) when a collective has waited for its timeout, 30
minutes as transformers sets it (`ddp_timeout`). SIGTERM to the DeepSpeed launcher reaches one rank,
which has 30 seconds before SIGKILL: all ranks save at the end of the step after the next flag is
exchanged, so that steps of more than ten seconds may not make it; then the last checkpoint counts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from kvfix.checkpoint.folder import read_json
from kvfix.launchers import free_port, without_rank
from kvfix.terminal import Interrupted

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launch(NamedTuple):
    """How this process was started."""

    deepspeed: dict[str, Any] | None  # the config, None without DeepSpeed
    stage: int  # ZeRO stage, 0 without DeepSpeed
    offload_params: bool  # whether parameters are on the CPU
    rank: int  # of this process
    world: int  # processes
    device: str  # where this rank's model goes


def plan_launch(zero: str, presets: Path, environment: Mapping[str, str] = os.environ) -> Launch:
    """Read the environment and the ZeRO preset; nothing is started yet.

    `zero` is "" for none (under the DeepSpeed launcher: 0), "0" to "3", "2_offload", "3_offload",
    or the path of a DeepSpeed config; `presets` is the folder of `zero<name>.json`.
    """
    world = int(environment.get("WORLD_SIZE", "1"))
    local = int(environment.get("LOCAL_RANK", "0"))
    launched = "LOCAL_RANK" in environment
    config = _config(zero or ("0" if launched else ""), presets)
    if config is not None:
        check_tools()
    stage = int((config or {}).get("zero_optimization", {}).get("stage", 0))
    offload = (config or {}).get("zero_optimization", {}).get("offload_param", {})
    device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    return Launch(
        config,
        stage,
        offload.get("device", "none") not in ("none", None),
        int(environment.get("RANK", "0")),
        world,
        device,
    )


def _config(zero: str, presets: Path) -> dict[str, Any] | None:
    if not zero:
        return None
    file = presets / f"zero{zero}.json"
    if not file.is_file():
        file = Path(zero)
    if not file.is_file():
        names = sorted(p.stem.removeprefix("zero") for p in presets.glob("zero*.json"))
        raise FileNotFoundError(
            f"zero={zero}: expected one of {', '.join(names)} or a DeepSpeed config, found neither"
        )
    return read_json(file)


def check_tools() -> None:
    """Refuse a CPU without compiler and ninja: DeepSpeed builds its communication on first use."""
    if torch.cuda.is_available():
        return
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if "ninja" in missing:
        try:
            import ninja  # noqa: F401

            missing.remove("ninja")
        except ImportError:
            pass
    if missing:
        raise ValueError(
            f"expected {' and '.join(missing)} on this machine, which DeepSpeed needs on its first "
            "start without a GPU, found none; apt install g++ (pip install ninja), or leave out "
            "zero="
        )


def typed(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The command line as it was typed, the launcher in front."""
    words = without_rank(argv)
    script = words[0].endswith(".py")
    if "LOCAL_RANK" not in environment:
        return ["python", *words] if script else words
    world = environment.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in environment:
        more = [] if script else ["--no-python"]
        return ["torchrun", "--nproc_per_node", world, *more, *words]
    more = [] if script else ["--no_python", "--no_local_rank"]
    return ["deepspeed", "--num_accelerators", world, *more, *words]


def set_rank_variables(launch: Launch) -> None:
    """Stand in for the launcher, so that `python recipes/x.py zero=2` starts, too."""
    if launch.deepspeed is None or "RANK" in os.environ:
        return
    values = ("0", "0", "1", "127.0.0.1", str(free_port()))
    os.environ.update(dict(zip(RANK_VARIABLES, values, strict=True)))


def run_to_its_end(words: Sequence[str], *, launched: bool) -> int:
    """Run a training, past Ctrl-C or SIGTERM, at which it saves; the exit code.

    `launched`: by the DeepSpeed runner, which would end and leave its launcher, a child, working.
    """
    process = subprocess.Popen(words)
    asked: list[int] = []

    def passed_on(number: int, frame: object) -> None:
        asked.append(number)
        if number == signal.SIGTERM:  # Ctrl-C reaches it without our help
            mine = psutil.Process(process.pid)
            for target in mine.children() if launched else [mine]:
                target.terminate()

    before = {n: signal.signal(n, passed_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and code:
        raise Interrupted("interrupted; the same command goes on where it stopped", 128 + asked[0])
    return code
