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
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401
import deepspeed
import torch
import transformers.trainer  # noqa: F401

from kvfix.config import load_config
from kvfix.recipes import train_surfacing
from kvfix.repair import module
from kvfix.repair.train import guard, trainer, training
from kvfix.repair.train.launch import RANK_VARIABLES
from kvfix.repair.train.recipe import Recipe
from kvfix.repair.train.show import Monitor
from kvfix.terminal import Interrupted

LIMIT = 240.0  # seconds a job may take


def main(file: Path) -> None:
    """Run the jobs one after the other."""
    torch.set_num_threads(1)
    for job in json.loads(file.read_text()):
        code = run(job, file.parent)
        (file.parent / f"{job['name']}.code").write_text(str(code))


def run(job: dict[str, Any], folder: Path) -> int:
    """0, or the status of the first rank that failed; the others are killed then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {fork(job, rank, port, folder): rank for rank in range(job["ranks"])}
    end, status = time.monotonic() + LIMIT, 0
    codes = [0] * job["ranks"]
    while ranks:
        pid, found = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[ranks.pop(pid)] = os.waitstatus_to_exitcode(found)
            status = status or os.waitstatus_to_exitcode(found)
        elif time.monotonic() > end or (status and not job.get("linger")):
            status = status or -1
            for pid in ranks:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    (folder / f"{job['name']}.codes").write_text(json.dumps(codes))
    return status


def fork(job: dict[str, Any], rank: int, port: int, folder: Path) -> int:
    """Start one rank; its id."""
    pid = os.fork()
    if pid:
        return pid
    log = os.open(folder / f"{job['name']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        if job["ranks"] > 1:
            found = (rank, rank, job["ranks"], "127.0.0.1", port)
            os.environ.update(
                zip(RANK_VARIABLES, map(str, found), strict=True), LOCAL_SIZE=str(job["ranks"])
            )
        train(job, rank, folder)
        code = 0
    except Interrupted as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
