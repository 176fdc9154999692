"""Several ranks share a run: equal to one rank's, whoever dies, however many go on with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill_and_resume
import pytest
import shared_runs
from commands import ENV

from kvfix.launchers import free_port

LIMIT = 12
TASKS = ("mcq", "semantic_correspondence", "referring_segmentation")


class Jobs:
    """What came of every job."""

    def __init__(self, folder: Path):
        self.folder = folder

    def codes(self, name: str) -> list[int]:
        return json.loads((self.folder / f"{name}.codes").read_text())

    def shown(self, name: str, rank: int) -> str:
        return (self.folder / f"{name}.{rank}.log").read_text()

    def result(self, name: str) -> Any:
        """Samples byte by byte, results, findings and what was left out."""
        return kill_and_resume.result("eval", self.folder / name)


def _words(command: str, model: Path, out: Path, *more: str) -> list[str]:
    return [command, "--model", str(model), "--limit", str(LIMIT), "--out", str(out), *more]


@pytest.fixture(scope="module")
def jobs(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    folder, model = tmp_path_factory.mktemp("ranks"), checkpoint("llava_onevision")
    asked = [word for task in TASKS for word in ("--task", task)] + ["--site", "value"]

    def evaluation(name: str, ranks: int, *more: str, out: str = "", **fault: Any) -> dict:
        words = _words("eval", model, folder / (out or name), *asked, *more)
        return {"name": name, "ranks": ranks, "words": words, **({"fault": fault} if fault else {})}

    def diagnosis(name: str, ranks: int) -> dict:
        tasks = ("--task", "foreground_segmentation", "--task", "mcq")
        words = _words("diagnose", model, folder / name, *tasks)
        return {"name": name, "ranks": ranks, "words": words}

    listed = [
        evaluation("one", 1),
        evaluation("two", 2, "--json"),
        evaluation("three", 3),
        evaluation("killed at a unit", 2, out="torn", rank=1, at="unit", after=5, do="kill"),
        evaluation("killed at the merge", 3, out="torn", rank=0, at="merge", do="kill"),
        evaluation("killed at the end", 2, out="torn", rank=0, at="end", do="kill"),
        evaluation("then alone", 1, out="torn"),
        evaluation("one rank fails", 2, rank=1, at="unit", after=3, do="raise"),
        evaluation("nothing there", 2, "--model", "/nowhere"),
        evaluation("wrong words", 2, "--data", "nothing"),
        diagnosis("one diagnosis", 1),
        diagnosis("three diagnose", 3),  # more than there are batches of images,
    ]
    (folder / "jobs.json").write_text(json.dumps(listed))
    helper = [sys.executable, shared_runs.__file__, str(folder / "jobs.json")]
    done = subprocess.run(helper, capture_output=True, text=True, timeout=900, env=ENV)
    assert done.returncode == 0, done.stderr
    return Jobs(folder)


@pytest.mark.parametrize("name", ["two", "three"])
def test_ranks_end_with_what_one_rank_writes(jobs: Jobs, name: str) -> None:
    assert jobs.codes(name) == [0] * (2 if name == "two" else 3), jobs.shown(name, 0)
    assert jobs.result(name) == jobs.result("one")
    assert sorted(p.name for p in (jobs.folder / name / "samples").iterdir()) == sorted(
        p.name for p in (jobs.folder / "one/samples").iterdir()
    )
    assert kill_and_resume.record(jobs.folder / name)["starts"][0]["host"]["ranks"] == len(
        jobs.codes(name)
    )


def test_one_rank_shows_what_goes_on(jobs: Jobs) -> None:
    shown = jobs.shown("two", 0)
    assert "probing 24 of 24" in shown and "answering 12 of 12" in shown
    assert jobs.shown("two", 1) == ""  # also of --json


def test_a_diagnosis_of_three_ranks_is_that_of_one(jobs: Jobs) -> None:
    assert jobs.codes("three diagnose") == [0, 0, 0], jobs.shown("three diagnose", 0)
    one, three = (
        kill_and_resume.record(jobs.folder / n) for n in ("one diagnosis", "three diagnose")
    )
    for key in ("notes", "left_out", "prefix", "surfacing", "surfacing_trained"):
        assert three[key] == one[key], key
    for mine, alone in zip(three["findings"], one["findings"], strict=True):
        assert mine.pop("value") == pytest.approx(alone.pop("value"), abs=1e-9)  # sums over ranks
        assert mine == alone
    assert three["keys"]["blocking"] == one["keys"]["blocking"]
    assert len(three["results"]) == len(one["results"])
    for mine, alone in zip(three["results"], one["results"], strict=True):
        assert mine["value"] == pytest.approx(alone["value"], abs=1e-9)
        assert {k: v for k, v in mine.items() if k not in ("value", "ci")} == {
            k: v for k, v in alone.items() if k not in ("value", "ci")
        }
    samples = [jobs.folder / n / "samples" for n in ("one diagnosis", "three diagnose")]
    for file in samples[0].iterdir():
        assert (samples[1] / file.name).read_bytes() == file.read_bytes(), file.name


def test_killed_ranks_go_on_in_any_number_and_nothing_is_done_twice(jobs: Jobs) -> None:
    for name in ("unit", "merge", "end"):
        assert -9 in jobs.codes(f"killed at {'the ' if name != 'unit' else 'a '}{name}")
    assert jobs.codes("then alone") == [0], jobs.shown("then alone", 0)
    assert jobs.result("torn") == jobs.result("one")
    assert len(kill_and_resume.record(jobs.folder / "torn")["starts"]) == 4
    assert not kill_and_resume.left_behind(jobs.folder / "torn")


def test_a_rank_that_fails_ends_all_by_one_line(jobs: Jobs) -> None:
    assert jobs.codes("one rank fails") == [1, 1]
    said = jobs.shown("one rank fails", 1)
    assert said == "error: expected no fault, found one on rank 1 (rank 1 of 2)\n"
    assert "error" not in jobs.shown("one rank fails", 0)


@pytest.mark.parametrize(("name", "code"), [("nothing there", 1), ("wrong words", 2)])
def test_what_every_rank_finds_wrong_is_said_once(jobs: Jobs, name: str, code: int) -> None:
    said = jobs.shown(name, 0) + jobs.shown(name, 1)
    assert jobs.codes(name) in ([code, 1], [1, code], [code, code])
    assert said.count("error: ") == 1 and "Traceback" not in said


def test_torchrun_starts_it(jobs: Jobs, checkpoint: Callable[[str], Path]) -> None:
    out, model = jobs.folder / "torchrun", checkpoint("llava_onevision")
    asked = [word for task in TASKS for word in ("--task", task)] + ["--site", "value"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    words = [*launcher, "-m", "kvfix", *_words("eval", model, out, *asked)]
    env = {k: v for k, v in ENV.items() if k not in os.environ or k != "WORLD_SIZE"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    assert jobs.result("torchrun") == jobs.result("one")


MEETING = """
import sys
from kvfix.data.left_out import attempted
from kvfix.ranks import check_alike, joined, number

def fails(i):
    raise ValueError("expected a unit, found none")

with joined():
    if sys.argv[1] == "alike":
        check_alike("data", number())
    attempted(int(sys.argv[1]), fails)
"""


@pytest.mark.parametrize(
    ("said", "why"),
    [("1", "expected a unit, found none"), ("alike", "found others on rank 1")],
)
def test_ranks_that_cannot_go_on_end_and_do_not_wait(said: str, why: str) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING, said],
            stderr=subprocess.PIPE,
            text=True,
            env=ENV | where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    errors = [one.communicate(timeout=300)[1] for one in pair]
    assert [one.returncode for one in pair] == [1, 1] and any(why in text for text in errors)
