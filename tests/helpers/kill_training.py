"""Kill a training with SIGKILL at random moments, go on, compare with an undisturbed one.

    python tests/helpers/kill_training.py --kills 20 --seed 0
    python tests/helpers/kill_training.py --kills 20 --ranks 2 --zero 2

A tiny model learns for some steps and saves after each. At every kill one rank, drawn at random, is
killed first, the others a moment later. Whenever a run ends before its kill, its adapter is
compared and another run is begun. Prints each kill with what it left; exits 1 if an adapter
differs: in a byte on one rank, by more than 1e-6 on several.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import ranks
import tiny
import torch
from safetensors.torch import load_file
from talks import write_talks

from kvfix.repair.train.saves import newest_whole

ADAPTER = "adapter_model.safetensors"


class Setup(NamedTuple):
    """What is trained: overrides without `out`, ranks, and a folder for all of it."""

    overrides: list[str]
    ranks: int
    folder: Path


def start(setup: Setup, out: Path, name: str) -> dict[int, int]:
    """Fork all ranks; rank by process id."""
    on = ["resume=true"] if newest_whole(out).last is not None else []
    job = {"name": name, "ranks": setup.ranks, "overrides": [*setup.overrides, f"out={out}", *on]}
    port = 20000 + random.SystemRandom().randrange(20000)
    return {ranks.fork(job, n, port, setup.folder): n for n in range(setup.ranks)}


def wait(pids: dict[int, int], seconds: float) -> list[int] | None:
    """Exit codes if all ranks ended within some seconds."""
    end, codes = time.monotonic() + seconds, []
    left = set(pids)
    while left and time.monotonic() < end:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.discard(pid)
                codes.append(os.waitstatus_to_exitcode(status))
        time.sleep(0.002)
    for pid in left:
        os.kill(pid, 0)
    return None if left else codes


def kill(pids: dict[int, int], rng: random.Random) -> None:
    """One rank, then the others."""
    order = rng.sample(sorted(pids), len(pids))
    for pid in order:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # ended in the meantime
        time.sleep(rng.uniform(0, 0.2) if len(pids) > 1 else 0)


def differs(out: Path, whole: Path, exact: bool) -> bool:
    """Whether two finished runs have different adapters."""
    if exact:
        return (out / ADAPTER).read_bytes() != (whole / ADAPTER).read_bytes()
    ours, theirs = load_file(out / ADAPTER), load_file(whole / ADAPTER)
    return any(bool((ours[n] - theirs[n]).abs().max() > 1e-6) for n in theirs)


def main() -> None:
    """An undisturbed run, then killed ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--zero", default="")
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = tiny.build("llava_wide", folder / "model"), write_talks(folder / "data", 16)
        words = [f"model={model}", f"data={data}", f"steps={asked.steps}", f"zero={asked.zero}"]
        words += ["batch=2", "save_every=1", "log_every=1", "threads=1", "lora.rank=4"]
        words += ["lora.dropout=0.1", "losses.kl={weight: 0.1}", "rates.lm=2e-3", "verify=false"]
        setup = Setup(words, asked.ranks, folder)
        begun = time.monotonic()
        codes = wait(start(setup, folder / "whole", "whole"), 600)
        seconds = time.monotonic() - begun
        if codes != [0] * asked.ranks:
            sys.exit((folder / "whole.log").read_text()[-3000:])
        print(f"undisturbed: {asked.steps} steps on {asked.ranks} rank(s), {seconds:.1f} s")
        done, lap, bad = 0, 0, 0
        while done < asked.kills or not (folder / f"run{lap}" / ADAPTER).exists():
            out = folder / f"run{lap}"
            after = rng.uniform(0.3, 1.0) * seconds if done < asked.kills else 600
            begun, resumed = time.monotonic(), newest_whole(out).last is not None
            pids = start(setup, out, f"run{lap}")
            codes = wait(pids, after)
            if codes is None:
                kill(pids, rng)
                done += 1
                found = newest_whole(out)
                half = sorted(p.name for p in out.glob(".*.partial"))
                print(
                    f"SIGKILL {done} after {after:.1f} s: newest whole "
                    f"{found.last.name if found.last else None}, torn {len(found.torn)}, "
                    f"half-written {half}",
                    flush=True,
                )
            elif any(codes):
                sys.exit((folder / f"run{lap}.log").read_text()[-3000:])
            else:
                if not resumed:  # the first run also warmed up, and its time is too long a bound
                    seconds = min(seconds, time.monotonic() - begun)
                other = differs(out, folder / "whole", asked.ranks == 1)
                bad += other
                print(f"run {lap} ended: its adapter {'DIFFERS' if other else 'is the same'}")
                if done < asked.kills:
                    lap += 1
        sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
