"""`kvfix diagnose --only ...`: keys, prefix and surfacing from the shell, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from commands import Finished, call, finish

from kvfix.data.scenes.units import scene_units
from kvfix.data.units import Question
from kvfix.diagnose.prefix.findings import CONTRASTS
from kvfix.diagnose.prefix.texts import CONDITIONS
from kvfix.diagnose.surfacing import trained as trained_readouts
from kvfix.eval.mcq import trained_readout
from kvfix.eval.mcq.readouts import READOUTS, Marked, views_of_each
from kvfix.eval.mcq.run import readable, run_readouts
from kvfix.eval.source import MlmSource
from kvfix.mlm.load import load_mlm
from kvfix.report.asked import asked
from kvfix.report.pictures.album import Album

LIMIT = 16  # of each task: six tasks show the 64 images that keys need


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llava_onevision")


@pytest.fixture(scope="session")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("parts") / "run"
    parts = [w for part in ("keys", "prefix", "surfacing") for w in ("--only", part)]
    return finish(folder, "diagnose", "--model", model, *parts, "--limit", LIMIT)


def test_keys_are_counted_by_layer_and_blocked_beside_controls(finished: Finished) -> None:
    keys = finished.run["keys"]
    assert keys["n"] >= 64 and len(keys["share_by_layer"]) == 3
    shares = [r for r in finished.run["results"] if r["task"] == "image_keys" and r["head"] is None]
    assert [r["value"] for r in shares] == pytest.approx(keys["share_by_layer"])
    assert all(r["ci"] and r["chance"] == keys["alpha"] for r in shares)
    by = {(e["queries"], e["metric"]): e for e in keys["blocking"]}
    assert len(by) == 3 and all(e["nothing_is_base"] for e in by.values())
    for effect in by.values():
        assert effect["n"] > 0 and set(effect["means"]) == {"base", "nothing", "chosen", "random"}
        change, means = effect["differences"]["chosen_random"], effect["means"]
        assert change["value"] == pytest.approx(means["chosen"] - means["random"])
    ids = {f["id"] for f in finished.run["findings"]}
    assert {"keys.share", "keys.layers", "keys.block_text", "keys.block_image"} <= ids


def test_prefixes_are_compared_and_their_order_is_printed(finished: Finished) -> None:
    for entry in finished.run["prefix"]:
        assert entry["n"] == LIMIT and set(entry["orders"]) == set(CONDITIONS)
        mine = [
            r
            for r in finished.run["results"]
            if r["task"] == entry["task"] and str(r["control"]).startswith("prefix ")
        ]
        assert len({r["control"] for r in mine}) == len(CONTRASTS)
        assert {r["layer"] for r in mine} == {0, 1, 2} and all(r["ci"] for r in mine)
    page = (finished.folder / "report.html").read_text()
    assert "Look for: " in page and "Text before the image" in page


def test_surfacing_has_a_table_an_example_and_a_sentence(finished: Finished) -> None:
    records = finished.run["surfacing"]
    assert {r["subtask"] for r in records} <= set(READOUTS) and len(records) == 2 * 4
    for record in records:
        assert sum(record["counts"].values()) == record["n"] > 0
        share = record["counts"]["unsurfaced"] / record["n"]
        assert record["of_all"]["value"] == pytest.approx(share)
    questions = asked(finished.folder, records, Album(finished.folder))
    assert len(questions) == 4 * 4 and all(q.picture and q.picture.uri for q in questions)
    unsurfaced = [q for q in questions if q.outcome == "unsurfaced"]
    assert all(q.readout == q.right for q in unsurfaced)
    page = (finished.folder / "report.html").read_text()
    assert page.count('data-outcome="unsurfaced"') == len(unsurfaced)
    assert "What does not surface" in (finished.folder / "report.md").read_text()
    sentences = [f for f in finished.run["findings"] if f["id"].startswith("surfacing.")]
    assert len(sentences) == len(records)
    assert finished.run["surfacing_trained"] == []  # 4 questions a subtask teach nothing
    assert any(
        "expected at least 20 questions in 5 clusters to train on, found 4 in 4" in line
        for line in finished.run["notes"]
    )


def test_a_person_gets_one_table_of_questions_and_no_table_of_stages(finished: Finished) -> None:
    err = finished.ended.err
    assert "multiple choice, scenes" in err and "Traceback" not in err
    assert "IoU difference" not in err and "input-agnostic\n" not in err


def test_too_few_images_are_said_and_cost_nothing_else(model: Path, tmp_path: Path) -> None:
    words = ("--only", "keys", "--limit", 2, "--task", "semantic_segmentation")
    ended = call("diagnose", "--model", model, *words, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert "expected at least 64 images to compare, found 2" in run["keys"]["skipped"]
    [said] = run["notes"]
    assert run["keys"]["skipped"] in said and said in " ".join(ended.err.split())
    for name in ("report.html", "report.md"):
        assert "found 2; raise --limit" in (tmp_path / "run" / name).read_text()


def test_units_of_one_name_have_no_wrong_name_and_the_rest_is_measured(
    model: Path, tmp_path: Path
) -> None:
    words = ("--no-control", "--limit", 1, "--task", "semantic_segmentation")
    ended = call("diagnose", "--model", model, *words, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err  # without --only: all four, of which two cannot be
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["fingerprint"]["only"] == ["flow", "keys", "prefix", "surfacing"]
    assert [line.partition(":")[0] for line in run["notes"]] == [
        "Image keys",
        "Text before the image, semantic_segmentation",
    ]
    assert run["prefix"] == run["surfacing"] == [] and run["results"]


def note_questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that trained readouts put through the model, beside those read out before."""
    names: list[str] = []

    def noted(questions: Sequence[Question], source: MlmSource) -> Iterator[Marked | str]:
        names.extend(question.id for question in questions)
        return views_of_each(questions, source)

    monkeypatch.setattr(trained_readouts, "views_of_each", noted)
    return names


def test_a_trained_readout_is_reported_apart_and_trained_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_readout, "FEWEST", 5)  # a limit of 24 is 6 questions a subtask
    passed = note_questions(monkeypatch)
    words = ("diagnose", "--model", model, "--only", "surfacing", "--limit", 24)
    ended = call(*words, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    run = json.loads(ended.out)
    plain = {(r["subtask"], r["scoring"]): r for r in run["surfacing"]}
    trained = {(r["subtask"], r["scoring"]): r for r in run["surfacing_trained"]}
    assert plain.keys() == trained.keys() and len(trained) == 2 * 4
    for name, record in trained.items():
        assert record["training"]["n"] == 6 and record["training"]["split"] == "train"
        assert record["n"] == plain[name]["n"] == 3  # the same held-out half
        assert record["answer"] == plain[name]["answer"] and "training" not in plain[name]
    rows = [r for r in run["results"] if r["control"] == "trained"]
    assert len(rows) == 4 and all(r["task"] == "readout" and r["subtask"] for r in rows)
    file = tmp_path / "run/samples/readout.trained.jsonl"
    assert all(json.loads(line)["id"].startswith("test_") for line in file.read_text().splitlines())
    assert "trained, L" in ended.err
    for page in ("report.html", "report.md"):
        assert "6 questions of the train split, 5 folds" in (tmp_path / "run" / page).read_text()
    assert len(passed) == 24 and all(name.startswith("train_") for name in passed)
    before = file.read_bytes()
    file.write_bytes(b"".join(before.splitlines(keepends=True)[:5]))  # as if it had been killed
    assert call(*words, "--out", tmp_path / "run").code == 0
    assert file.read_bytes() == before and any(name.startswith("test_") for name in passed)
    monkeypatch.setattr(trained_readouts, "train_readout", None)  # a second start has no use for it
    again = json.loads(call(*words, "--out", tmp_path / "run", "--json").out)
    assert again["surfacing_trained"] == run["surfacing_trained"] and file.read_bytes() == before


def test_what_was_read_out_is_what_each_question_holds_alone(model: Path, tmp_path: Path) -> None:
    units = readable(scene_units("mcq", n=40), 9)  # a group of eight, and one more
    source = MlmSource(load_mlm(str(model)), kinds=("value",), position=False)
    read, later = (trained_readouts.ReadOut(units, source, tmp_path) for _ in range(2))
    run_readouts(units, source, tmp_path, seen=read.keep)
    for question in map(units.question, range(len(units))):
        [alone] = views_of_each([question], source)
        assert isinstance(alone, Marked)
        expected = trained_readout.option_features(alone, "value")
        assert torch.allclose(read.features[question.id], expected, atol=1e-6)
        assert torch.equal(later.of(question), read.features[question.id])  # in a second start


def test_an_unknown_diagnosis_is_wrong_usage(model: Path, tmp_path: Path) -> None:
    ended = call("diagnose", "--model", model, "--only", "soul", "--out", tmp_path / "run")
    assert ended.code == 2 and "not one of 'flow', 'keys', 'prefix'" in ended.err
