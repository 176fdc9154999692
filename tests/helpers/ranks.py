"""Trainings on one or several ranks, each in forked processes: imports are paid once.

    python tests/helpers/ranks.py JOBS.json

JOBS.json lists jobs: {"name", "ranks", "overrides"}. What a job prints goes to NAME.log beside
JOBS.json, its exit status to NAME.code (of each rank to NAME.codes), digests of the frozen weights
before and after to NAME.frozen. With "kill_after" rank 0 ends itself by SIGKILL once that step is
logged. With "fault": {"rank", "step", "do"} that rank in that step gets a signal ("kill", "term"),
is killed while it saves ("save"), or finds its loss to be NaN ("nan"). Where one rank fails the
others are killed, unless the job says "linger": then they must end by themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401
import deepspeed
import torch
import transformers.trainer  # noqa: F401
from forked import run_ranks

from kvfix.config import load_config
from kvfix.recipes import train_surfacing
from kvfix.repair import module
from kvfix.repair.train import guard, trainer, training
from kvfix.repair.train.recipe import Recipe
from kvfix.repair.train.show import Monitor
from kvfix.terminal import Interrupted


def main(file: Path) -> None:
    """Run the jobs one after the other."""
    torch.set_num_threads(1)
    for job in json.loads(file.read_text()):
        code = run(job, file.parent)
        (file.parent / f"{job['name']}.code").write_text(str(code))


def run(job: dict[str, Any], folder: Path) -> int:
    """0, or the status of the first rank that failed; the others are killed then."""
    ended = run_ranks(
        job["ranks"],
        partial(work, job, folder),
        lambda rank: folder / f"{job['name']}.log",
        fatal=lambda code: code != 0 and not job.get("linger"),
        local_size="LOCAL_SIZE",
    )
    codes = [ended[rank] for rank in range(job["ranks"])]
    (folder / f"{job['name']}.codes").write_text(json.dumps(codes))
    return next((code for code in ended.values() if code), 0)


def work(job: dict[str, Any], folder: Path, rank: int) -> int:
    """The training, on one rank; its exit status."""
    try:
        train(job, rank, folder)
    except Interrupted as stop:
        return stop.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def train(job: dict[str, Any], rank: int, folder: Path) -> None:
    """What `python recipes/NAME.py` does, watched."""
    watch(job, rank, folder)
    if job.get("fault", {}).get("rank") == rank:
        plant(job["fault"])
    recipe = load_config(Recipe, None, job["overrides"])
    train_surfacing.train(recipe, command=["python", *job["overrides"]])


def watch(job: dict[str, Any], rank: int, folder: Path) -> None:
    """Take digests around the steps; end the process in the midst of them if asked to."""
    steps, line = training.run_steps, Monitor.line

    def digested(work: Any, **more: Any) -> Any:
        before = digest(work.repair)
        ended = steps(work, **more)
        after = digest(work.repair)
        if rank == 0:
            both = json.dumps({"before": before, "after": after})
            (folder / f"{job['name']}.frozen").write_text(both)
        return ended

    def killing(self: Monitor, logs: dict[str, Any]) -> None:
        line(self, logs)
        if logs["step"] == job.get("kill_after"):
            os.kill(os.getpid(), signal.SIGKILL)

    training.run_steps = digested
    Monitor.line = killing  # type: ignore[method-assign]


def plant(fault: dict[str, Any]) -> None:
    """One fault, on this rank."""
    step, do = fault["step"], fault["do"]
    if do == "nan":
        means_of = module.Repair._means_of

        def nan(self: Any, batch: Any, made: Any, number: int) -> list[Any]:
            own, *others = means_of(self, batch, made, number)
            if number + 1 == step:
                own = own._replace(total=own.total * math.nan)
            return [own, *others]

        module.Repair._means_of = nan  # type: ignore[method-assign]
    elif do == "save":
        save = trainer.RepairTrainer._save_rng_state

        def killed(self: Any, output_dir: str) -> None:
            save(self, output_dir)
            if self.state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.RepairTrainer._save_rng_state = killed  # type: ignore[method-assign]
    else:
        end = guard.Guard.end

        def hit(self: Any, number: int, rates: dict[str, float]) -> None:
            end(self, number, rates)
            if number == step:
                os.kill(os.getpid(), signal.SIGKILL if do == "kill" else signal.SIGTERM)

        guard.Guard.end = hit  # type: ignore[method-assign]


def digest(repair: Any) -> dict[str, str]:
    """Of every frozen parameter's bytes, and of what makes numbers of 4-bit ones; all ranks."""
    found = {}
    for name, parameter in repair.named_parameters():
        if parameter.requires_grad:
            continue
        partitioned = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(partitioned):
            whole = hashlib.sha256(data(parameter))
            state = getattr(parameter, "quant_state", None)
            for tensor in [] if state is None else state.as_dict(packed=True).values():
                whole.update(data(tensor))
        found[name] = whole.hexdigest()
    return found


def data(x: torch.Tensor) -> bytes:
    """As they lie in memory."""
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
