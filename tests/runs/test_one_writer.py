"""Two commands on one `--out`: exactly one works, the other says at once who does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import dump_files
import pytest
from commands import ENV, KVFIX, call
from two_runs import AFTER_QUIZ, BEFORE_QUIZ, quiz, save

from kvfix.runs.atomic import atomic_folder
from kvfix.runs.lock import locked

ROUNDS = 2


def two_at_once(words: list[str], out: Path) -> list[tuple[int, str]]:
    """Exit codes and messages of two processes that start together."""
    pair = [
        subprocess.Popen(
            [KVFIX, *words, "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=ENV,
        )
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in pair]
    return [(process.returncode, err) for process, err in zip(pair, errors, strict=True)]


def test_of_two_that_start_at_once_exactly_one_runs(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    words = ["eval", "--model", str(checkpoint("llava")), "--task", "semantic_correspondence"]
    words += ["--site", "value", "--limit", "2"]
    results = []
    for i in range(ROUNDS):
        out = tmp_path / f"run{i}"
        (_, won), (code, err) = sorted(two_at_once(words, out), key=lambda end: end[0])
        assert code == 1 and f"error: {out} is being written by pid " in err, (won, err)
        assert "loading" not in err  # refused before anything was loaded
        record = json.loads((out / "run.json").read_text())
        assert record["complete"] and len(record["starts"]) == 1
        assert not (out / ".kvfix.lock").exists()
        results.append(record["results"])
    assert results == [results[0]] * ROUNDS


@pytest.mark.parametrize("command", ["eval", "diagnose", "compare", "correlate", "score"])
def test_every_command_that_writes_a_folder_asks_for_it(command: str, tmp_path: Path) -> None:
    sides = [
        save(tmp_path / name, quiz(answers))
        for name, answers in (("before", BEFORE_QUIZ), ("after", AFTER_QUIZ))
    ]
    words: list[object] = [command]
    if command in ("compare", "correlate"):
        words = ["compare", *sides, *(["--correlate"] if command == "correlate" else [])]
    if command == "score":
        dump, key = dump_files.official(tmp_path / "dump"), dump_files.key(tmp_path / "key")
        words = ["score", "blink", "--predictions", dump, "--answers", key]
    out = tmp_path / "out"
    with locked(out, command="kvfix something else"):
        before = sorted(p.name for p in out.iterdir())
        ended = call(*words, "--out", out)
        assert ended.code == 1, ended
        assert f"{out} is being written by pid " in ended.error, ended.err
        assert "(kvfix something else); wait for it, or choose another --out" in ended.error
        assert sorted(p.name for p in out.iterdir()) == before


def test_a_second_merge_is_refused_before_it_loads_anything(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", command="kvfix merge --adapter a") as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        ended = call("merge", "--adapter", tmp_path / "no adapter", "--out", tmp_path / "out")
        assert ended.code == 1 and "(kvfix merge --adapter a); wait for it" in ended.error
        assert (folder / "model.safetensors").read_bytes() == b"half"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.safetensors"]
