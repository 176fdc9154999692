"""`kvfix score`: official figures from dumps and result folders, through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dump_files as files
import numpy as np
import pytest
import trees
from commands import Ended, call
from dump_files import KEY, TEXTS, put

from kvfix.eval.metrics import davis_objects


def blink(folder: Path, dump: Path, *more: object) -> Ended:
    key = files.key(folder / "key")
    return call("score", "blink", "--predictions", dump, "--answers", key, *more)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Jars: one of four unparsed, the others right; lids: two of three right.
def test_blink_figures_by_hand(tmp_path: Path) -> None:
    done = blink(tmp_path, files.official(tmp_path / "dump"), "--profile", "official", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["macro"] == pytest.approx((3 / 4 + 2 / 3) / 2, abs=1e-15)
    assert found["micro"] == 5 / 7 and (found["n"], found["correct"]) == (7, 5)
    assert (found["unparsed"], found["unparsed_rate"]) == (1, 1 / 7)
    assert found["letters"] == {"A": 3, "B": 1, "C": 2, "unparsed": 1}
    assert found["answers"] == {"A": 3, "B": 3, "C": 1}
    jars = found["tasks"]["Jar_Colour"]
    assert (jars["accuracy"], jars["n"], jars["unparsed"]) == (3 / 4, 4, 1)
    assert found["tasks"]["Two-lid_Match"]["letters"] == {"A": 1, "B": 0, "C": 2, "unparsed": 0}
    for value, ci in (("macro", "macro_ci"), ("micro", "micro_ci")):
        low, high = found[ci]
        assert 0 <= low < found[value] < high <= 1
    assert "Two-lid Match" in done.err and "70.83" in done.err and "note" not in done.err


def test_each_profile_has_its_own_figures(tmp_path: Path) -> None:
    micro = {}
    before = "lmms-eval@before-1435"
    for profile in ("kvfix", "official", "lmms-eval", before, "vlmevalkit"):
        found = json.loads(
            blink(tmp_path, files.official(tmp_path / "d"), "--profile", profile, "--json").out
        )
        assert found["profile"] == profile and found["follows"]
        micro[profile] = found["micro"]
    assert micro.pop(before) == 4 / 7
    assert set(micro.values()) == {5 / 7}


def test_parsed_letters_are_trusted_when_asked(tmp_path: Path) -> None:
    dump = put(tmp_path / "a.json", {"val": files.records(**{"val_Jar_Colour_2": "(B) Jar B"})})
    found = json.loads(blink(tmp_path, dump, "--parsed", "--profile", "official", "--json").out)
    assert found["parsed"] is True and found["unparsed"] == 1
    assert found["correct"] == 3  # everything is parsed as (A), which is right three times
    failed = blink(tmp_path, files.vlmevalkit(tmp_path / "a.csv"), "--parsed")
    assert failed.code == 1 and "expected parsed letters (--parsed), found none" in failed.error


def test_a_table_with_options_lets_their_texts_count(tmp_path: Path) -> None:
    second = {"val_Jar_Colour_2": {"prediction": "It is the Green one."}}
    table = files.vlmevalkit(tmp_path / "a.csv", **second)
    assert json.loads(blink(tmp_path, table, "--json").out)["correct"] == 6
    plain = put(tmp_path / "a.json", TEXTS | {"val_Jar_Colour_2": "It is the Green one."})
    assert json.loads(blink(tmp_path, plain, "--json").out)["correct"] == 5


def test_missing_questions_are_wrong_listed_and_fail_the_command(tmp_path: Path) -> None:
    few = {i: t for i, t in TEXTS.items() if i != "val_Jar_Colour_1"}
    done = blink(tmp_path, put(tmp_path / "a.json", few), "--json", "--out", tmp_path / "out")
    assert done.code == 1
    assert "expected predictions for at least 95 % of the questions, found 6 of 7" in done.error
    found = json.loads(done.out)
    assert found["missing"] == ["val_Jar_Colour_1"] and found["micro"] == 4 / 7
    assert found["tasks"]["Jar_Colour"]["missing"] == 1 and found["n"] == 7
    assert "questions without a prediction, which count as wrong: 1 (val_Jar" in done.err
    [first, *_] = read_lines(tmp_path / "out/samples/mcq.jsonl")
    assert first["missing"] and first["unparsed"] and first["correct"] == 0


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    odd = [*files.records(TEXTS | {"val_Jar_Colour_1": None}), files.records()[1]]
    odd[4]["answer"] = "(D)"
    done = blink(
        tmp_path, put(tmp_path / "a.json", [*odd, {"idx": "val_[red]_1", "prediction": 1}])
    )
    assert done.code == 0 and done.out == ""
    notes = " ".join(done.err.split())
    for says in (
        "null or not text, which count as wrong: 1 (val_Jar_Colour_1)",
        "questions that the answers do not have, left out: 1 (val_[red]_1)",
        "the answer file, which counts, denies: 1 (val_Two-lid_Match_1)",
        "further copies of a prediction, all equal: 1",
    ):
        assert says in notes


def test_a_scored_folder_holds_a_run_and_a_line_a_question(tmp_path: Path) -> None:
    out = tmp_path / "deep/out"
    dump = files.official(tmp_path / "dump")
    done = blink(tmp_path, dump, "--profile", "official", "--out", out, "--json")
    assert done.code == 0, done.err
    run = json.loads((out / "run.json").read_text())
    assert run["kind"] == "score" and run["complete"] and run["versions"]["python"]
    assert run["fingerprint"]["profile"] == "official" and run["command"].startswith("kvfix score")
    assert run["macro"] == json.loads(done.out)["macro"]
    lines = read_lines(out / "samples/mcq.jsonl")
    assert [line["id"] for line in lines] == list(KEY)
    assert lines[1] == {
        "kind": "answer",
        "id": "val_Jar_Colour_2",
        "task": "mcq",
        "subtask": "Jar_Colour",
        "dataset": "blink",
        "control": None,
        "cluster": "val_Jar_Colour_2",
        "correct": 0,
        "letter": None,
        "answer": "B",
        "unparsed": True,
        "missing": False,
        "rows": 1,
    }
    assert sum(line["correct"] for line in lines) == run["correct"] == 5
    by_metric = {(r["metric"], r["subtask"]): r for r in run["results"]}
    assert by_metric["accuracy_macro", None]["value"] == run["macro"]
    assert by_metric["accuracy", "Jar_Colour"]["n"] == 4
    for row in run["results"]:
        assert row["task"] == "mcq" and row["split"] == "val" and len(row["ci"]) == 2


def test_a_scored_folder_is_written_again_or_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    dump = files.official(tmp_path / "dump")
    assert blink(tmp_path, dump, "--out", out).code == 0
    before = (out / "samples/mcq.jsonl").read_bytes()
    (out / "samples/mcq.jsonl").write_text("torn")
    assert blink(tmp_path, dump, "--out", out).code == 0
    assert (out / "samples/mcq.jsonl").read_bytes() == before
    other = blink(tmp_path, dump, "--out", out, "--profile", "lmms-eval")
    assert other.code == 1 and "profile: then 'kvfix', now 'lmms-eval'" in other.error
    assert (out / "samples/mcq.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--predictions", "nowhere.json"], 1, "nowhere.json: expected predictions"),
        (["--profile", "gpt"], 2, "gpt"),
        (["--answers", "nowhere.json"], 1, "nowhere.json: expected a file, found none"),
    ],
)
def test_wrong_words_fail_without_a_traceback(
    words: list[str], code: int, says: str, tmp_path: Path
) -> None:
    done = blink(tmp_path, files.official(tmp_path / "dump"), *words)
    assert done.code == code and says in done.err and "Traceback" not in done.err


# DAVIS


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return trees.davis(tmp_path / "DAVIS")


def results(folder: Path, *, frames: int = 5, clips: tuple[str, ...] = ("goat", "ants")) -> Path:
    """Masks that lag a frame behind; the first and the last are not there."""
    for name in clips:
        for t in range(1, frames - 1):
            trees.mask(folder / name / f"{t:05d}.png", trees.labels(t - 1))
    return folder


def davis(pred: Path, gt: Path) -> Ended:
    return call("score", "davis", "--pred", pred, "--gt", gt, "--json")


def test_davis_figures_are_means_over_objects(tmp_path: Path, truth: Path) -> None:
    pred = results(tmp_path / "pred")
    for t in (1, 2, 3):  # one clip without its second object
        trees.mask(pred / "ants" / f"{t:05d}.png", trees.labels(t, 1))
    done = davis(pred, truth)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    # Blocks 6 x 8, a column off: 42 / 54. The other clip: 1 and 0.
    lag = 42 / 54
    assert found["J-Mean"] == pytest.approx((lag + lag + 1 + 0) / 4, abs=1e-12)
    assert found["J-Recall"] == 3 / 4 and found["J-Decay"] == pytest.approx(0)
    assert found["J&F-Mean"] == pytest.approx((found["J-Mean"] + found["F-Mean"]) / 2, abs=1e-15)
    assert (found["n_objects"], found["n_sequences"]) == (4, 2)
    ants = found["sequences"]["ants"]
    assert ants["frames"] == 3 and ants["J-Mean"] == 0.5
    assert ants["objects"]["ants_2"] == dict.fromkeys(ants["objects"]["ants_2"], 0.0)
    low, high = found["ci"]["J-Mean"]
    assert low <= found["J-Mean"] <= high
    assert list(found["sequences"]) == ["goat", "ants"] and "goat" in done.err


def test_davis_equals_the_metric_on_arrays(tmp_path: Path, truth: Path) -> None:
    found = json.loads(davis(results(tmp_path / "pred"), truth).out)
    true = [trees.labels(t) for t in range(5)]
    mine = [trees.labels(max(t - 1, 0)) for t in range(5)]
    one, two = davis_objects(mine, true)
    goat = found["sequences"]["goat"]["objects"]
    assert goat["goat_1"]["F-Mean"] == one.f_mean and goat["goat_2"]["J&F-Mean"] == two.jf


def test_davis_void_is_ground_and_a_plain_folder_is_truth_too(tmp_path: Path, truth: Path) -> None:
    plain = shutil.copytree(truth / "Annotations/480p", tmp_path / "plain")
    expected = json.loads(davis(results(tmp_path / "pred"), truth).out)
    for file in plain.rglob("*.png"):
        labels = trees.labels(int(file.stem))
        labels[-2:] = 255
        trees.mask(file, labels)
    found = json.loads(davis(tmp_path / "pred", plain).out)
    assert found["J&F-Mean"] == expected["J&F-Mean"]
    parent = json.loads(davis(tmp_path / "pred", tmp_path).out)
    assert parent["J&F-Mean"] == expected["J&F-Mean"]


def test_davis_extra_folders_are_ignored_and_named(tmp_path: Path, truth: Path) -> None:
    pred = results(tmp_path / "pred", clips=("goat", "ants", "zebra"))
    done = davis(pred, truth)
    assert done.code == 0 and json.loads(done.out)["ignored"] == ["zebra"]
    assert "zebra" in done.err


def test_davis_one_sequence_has_no_interval(tmp_path: Path) -> None:
    gt = trees.davis(tmp_path / "one", clips=("goat",), frames=3)
    found = json.loads(davis(results(tmp_path / "pred", frames=3), gt).out)
    assert found["ci"]["J&F-Mean"] is None and found["n_sequences"] == 1


def test_davis_faults_are_named(tmp_path: Path, truth: Path) -> None:
    pred = results(tmp_path / "pred")

    def says(text: str, gt: Path = truth) -> None:
        done = davis(pred, gt)
        assert done.code == 1 and text in done.error, done.err
        assert done.out == ""

    shutil.move(pred / "ants", tmp_path / "ants")
    says("found no folder for ants")
    shutil.move(tmp_path / "ants", pred / "ants")
    (pred / "ants/00002.png").rename(pred / "ants/2.png")
    says("pred/ants: expected a mask for each of 3 frames, found none for 00002.png")
    trees.mask(pred / "ants/00002.png", trees.labels(2, 2)[:20])
    says("ants/00002.png: expected 32 x 24 pixels like the truth, found 32 x 20")
    trees.mask(pred / "ants/00002.png", np.full((24, 32), 3, np.uint8))
    says("ants/00002.png: expected object ids up to 2")
    trees.photo(pred / "ants/00002.png", 50)
    says("ants/00002.png: expected a mask of mode P")
    (pred / "ants/00002.png").write_bytes(b"")
    says("ants/00002.png: expected a mask, found an empty file")
    says("nowhere: expected the ground truth, found no such folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    says("found no mask", tmp_path / "empty")
    shutil.rmtree(pred)
    says("pred: expected a folder of results, found no such folder")


def test_davis_truth_that_is_none(tmp_path: Path, truth: Path) -> None:
    pred = results(tmp_path / "pred")
    first = truth / "Annotations/480p/goat/00000.png"
    trees.mask(first, (trees.labels(0) > 0).astype(np.uint8) * 255)
    assert "found 0 and 255 only: a mask of DAVIS-2016" in davis(pred, truth).error
    trees.mask(first, np.zeros((24, 32), np.uint8))
    assert "background only" in davis(pred, truth).error
    shutil.rmtree(first.parent)
    assert "expected masks of every sequence, found none of goat" in davis(pred, truth).error
    short = trees.davis(tmp_path / "short", frames=2)
    assert "expected at least 3 masks" in davis(pred, short).error
