"""A launcher in front of a command that is one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call

from kvfix import launchers

TWO = {
    "torchrun": {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    "mpiexec": {"PMI_SIZE": "2", "PMI_RANK": "0"},
    "srun": {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
}
ALONE = {
    "nothing": {},
    "torchrun of one": {"WORLD_SIZE": "1", "RANK": "0"},
    "empty": {"WORLD_SIZE": ""},
    "sbatch": {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"},
    "srun of one": {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
}
COMMANDS = ("compare", "score", "plan", "data", "merge", "repair")


@pytest.mark.parametrize("name", TWO)
def test_the_first_rank_says_the_command_and_the_others_nothing(name: str) -> None:
    first = TWO[name]
    why = launchers.refusal("kvfix", ["plan", "--limit", "2"], first)
    assert why is not None and why.endswith("without the launcher: kvfix plan --limit 2")
    assert next(iter(key for key in first if key.endswith(("SIZE", "NUM_TASKS")))) in why
    [number] = [key for key in first if key.endswith(("RANK", "PROCID")) and "LOCAL" not in key]
    assert launchers.refusal("kvfix", ["plan"], first | {number: "1"}) == ""


@pytest.mark.parametrize("name", ALONE)
def test_one_process_is_let_through(name: str) -> None:
    assert launchers.refusal("kvfix", ["eval"], ALONE[name]) is None


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_starts_twice(command: str, monkeypatch, tmp_path: Path) -> None:
    for key, value in TWO["torchrun"].items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    ended = call("--local_rank=0", command, "--out", "x y")
    assert ended.code == 2 and ended.out == ""
    assert ended.error.endswith(f"without the launcher: kvfix {command} --out 'x y'")
    monkeypatch.setenv("RANK", "1")
    silent = call("--local_rank=1", command, "--out", "x y")
    assert (silent.code, silent.out, silent.err) == (2, "", "")
    assert not list(tmp_path.iterdir())


def test_a_command_made_for_ranks_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "MADE_FOR_RANKS", frozenset({"eval"}))
    assert launchers.refusal("kvfix", ["--local_rank=0", "eval"], TWO["torchrun"]) is None
    assert launchers.refusal("kvfix", ["diagnose"], TWO["torchrun"])


@pytest.mark.parametrize("command", ["eval", "diagnose", "train"])
def test_what_ranks_share_needs_a_launcher_that_says_where_they_meet(command: str) -> None:
    assert launchers.refusal("kvfix", [command], TWO["torchrun"]) is None
    why = launchers.refusal("kvfix", [command], TWO["mpirun"])
    assert why is not None and "start it by torchrun, or without the launcher: kvfix" in why


def test_ranks_know_their_place_on_their_machine() -> None:
    assert launchers.local_rank({"LOCAL_RANK": "3"}) == 3 and launchers.local_rank({}) == 0
    assert launchers.local_ranks({"LOCAL_WORLD_SIZE": "4"}) == 4  # torchrun
    assert launchers.local_ranks({"LOCAL_SIZE": "2"}) == 2  # deepspeed
    assert launchers.local_ranks({}) == 1
