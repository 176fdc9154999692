"""`kvfix eval` from the shell on a tiny random model: every task, every resume, every refusal."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import kill_and_resume
import pytest
from commands import Finished, call, finish, to_copy

from kvfix.data.scenes.questions import SKILLS
from kvfix.data.scenes.units import SCENE_TASKS
from kvfix.eval.mcq.readouts import READOUTS
from kvfix.eval.pooled import POOLED

LIMIT = 9  # one question a skill


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llava_onevision")


@pytest.fixture(scope="session")
def words(model: Path) -> list[str]:
    tasks = ("mcq", "semantic_correspondence", "referring_segmentation")
    asked = [w for task in tasks for w in ("--task", task)]
    return ["--model", str(model), *asked, "--site", "value", "--limit", str(LIMIT)]


@pytest.fixture(scope="session")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(tmp_path_factory.mktemp("eval") / "run", "eval", *words)


def test_the_record_says_how_questions_were_asked(finished: Finished) -> None:
    run = finished.run
    assert json.loads(finished.ended.out) == run
    assert run["kind"] == "eval" and run["complete"] and run["seconds"] > 0
    assert run["mcq"]["profile"] == "kvfix" and run["mcq"]["batch"] == 8
    assert run["fingerprint"]["mcq"] == run["mcq"] and run["fingerprint"]["sites"] == ["value"]


def test_answers_have_both_scorings_with_letters_and_unparsed(finished: Finished) -> None:
    rows = [r for r in finished.run["results"] if r["task"] == "mcq"]
    for scoring in ("generation", "logprob"):
        mine = [r for r in rows if r["scoring"] == scoring]
        assert {r["subtask"] for r in mine if r["metric"] == "accuracy"} == set(SKILLS)
        [macro] = [r for r in mine if r["metric"] == "accuracy_macro"]
        assert macro["n"] == LIMIT and sum(macro["answers"].values()) == LIMIT
        assert sum(macro["letters"].values()) == LIMIT and 0.2 <= macro["chance"] <= 0.5
    likely = [r for r in rows if r["scoring"] == "logprob"]
    assert all(r["unparsed"] == 0 for r in likely)  # a most probable letter there always is


def test_readouts_and_what_has_none_are_told_apart(finished: Finished) -> None:
    read = {r.get("subtask") for r in finished.run["results"] if r["task"] == "readout"}
    assert {skill for skill in SKILLS if skill in READOUTS} <= read
    without = finished.run["without_readout"]["scenes"]
    assert sum(without.values()) == LIMIT - sum(skill in READOUTS for skill in SKILLS)
    assert not finished.run["left_out"]


def test_probes_have_their_benchmarks_pooled_figures(finished: Finished) -> None:
    for task in ("semantic_correspondence", "referring_segmentation"):
        mine = [r for r in finished.run["results"] if r["task"] == task]
        assert set(POOLED[task]) < {r["metric"] for r in mine}
        assert {r["site"] for r in mine} == {"value", "position"}


def test_a_person_gets_tables_within_100_columns(finished: Finished) -> None:
    err = finished.ended.err
    assert "multiple choice, scenes" in err and "macro" in err and "Traceback" not in err
    shown = err[err.index("dataset") :].splitlines()
    assert max(len(line) for line in shown if not to_copy(line)) <= 100
    page = (finished.folder / "report.html").read_text()
    assert "Multiple choice: scenes" in page and "Without readout" in page
    assert "Multiple choice: scenes" in (finished.folder / "report.md").read_text()


def test_killed_three_times_a_run_ends_with_the_same_results(
    finished: Finished, words: list[str], tmp_path: Path
) -> None:
    lines = kill_and_resume.lines_on_disk(finished.folder)
    undisturbed = kill_and_resume.result("eval", finished.folder)
    whole = kill_and_resume.Whole(undisturbed, first=6, seconds=10, lines=lines)
    found, moments = kill_and_resume.killed_run(
        ["eval", *words], tmp_path / "run", whole, kills=3, rng=random.Random(0)
    )
    assert len(moments) == 3 and moments[-1].units > 0
    assert found == undisturbed and kill_and_resume.record(tmp_path / "run")["resumed"]
    assert kill_and_resume.left_behind(tmp_path) == []


def test_two_evaluations_are_compared(finished: Finished, tmp_path: Path) -> None:
    ended = call("compare", finished.folder, finished.folder, "--out", tmp_path / "c", "--json")
    assert ended.code == 0, ended.err
    record = json.loads(ended.out)
    [questions] = record["questions"]
    assert questions["micro"]["value"] == 0 and questions["logprob"]["micro"]["value"] == 0
    compared = {(p["task"], p.get("subtask")) for p in record["probes"]}
    assert compared >= {("semantic_correspondence", None), ("readout", "Art_Style")}


def test_wrong_words_are_wrong_usage(model: Path, tmp_path: Path) -> None:
    base = ("eval", "--model", model, "--out", tmp_path / "run")
    ended = call(*base, "--site", "soul")
    assert ended.code == 2 and "not one of 'vision', 'projector'" in ended.err
    ended = call(*base, "--task", "jumping")
    assert ended.code == 2 and f"task: expected one of {sorted(SCENE_TASKS)[0]}" in ended.error
    assert not (tmp_path / "run").exists()


def test_another_way_of_asking_is_another_run(finished: Finished, words: list[str]) -> None:
    ended = call("eval", *words, "--out", finished.folder, "--profile", "official")
    assert ended.code == 1 and "mcq.profile: then 'kvfix', now 'official'" in ended.error


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "llava"])
def test_every_family_answers(
    family: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    ended = call(
        "eval", "--model", checkpoint(family), "--task", "mcq", "--limit", 9,
        "--site", "value", "--out", tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert {r["metric"] for r in run["results"]} >= {"accuracy_macro", "accuracy"}
