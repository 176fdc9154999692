"""The experiment on photos of your own: what is kept, mixed, taught, and had without a model."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from blink_files import blink, row, write
from PIL import Image
from places import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "experiment"))

import run as experiment
from mixture import Record, mixed, parts, read_records, write_records
from run import Grid, Trial, check_settings, prepare
from samples import answers
from tables import readouts_table
from teach import SHARES, answer_of, lessons
from without_model import by_images, by_points, file_sizes, without_model

from kvfix.config import load_config
from kvfix.data.training.dataset import read_conversations
from kvfix.data.training.examples import conversation_examples
from kvfix.data.units import Question
from kvfix.repair.train.recipe import Recipe


def record(kind: str, number: int, asked: str, answer: str, images: tuple[str, ...]) -> Record:
    said = [{"role": "user", "content": f"<image>\n{asked}"}]
    said += [{"role": "assistant", "content": answer}]
    return {
        "id": f"{kind}_{number}",
        "sub_task": kind,
        "images": list(images),
        "messages": said,
    }


def choices(kind: str, n: int, *, photos: int) -> list[Record]:
    """Questions on `photos` photos of their kind."""
    return [
        record(kind, i, "Which?\n(A) yes\n(B) no", f"({'AB'[i % 2]})", (f"{kind}{i % photos}.png",))
        for i in range(n)
    ]


def test_no_photo_of_the_part_that_is_kept_is_learned_from() -> None:
    records = choices("Counting", 400, photos=200)
    train, val = parts(records)
    assert 20 < len(val) < 60 and len(train) > 250
    photos = {name for r in val for name in r["images"]}
    assert not photos & {name for r in train for name in r["images"]}
    assert parts(records[::-1]).val == val[::-1]  # the file's order decides nothing


def test_kinds_are_mixed_by_their_shares_and_none_comes_twice() -> None:
    records = [*choices("Jigsaw", 10, photos=10), *choices("Counting", 7, photos=7)]
    got = mixed(records, {"Jigsaw": 1, "Counting": 2, "Art_Style": 0})
    assert Counter(r["sub_task"] for r in got) == {"Jigsaw": 3, "Counting": 6}
    assert len({r["id"] for r in got}) == 9
    for shares in ({"Jigsaw": 1, "Reading": 1}, {"Jigsaw": 1, "Counting": 8}):
        with pytest.raises(ValueError, match=r"expected records of Jigsaw, .* 'Counting': 7"):
            mixed(records, shares)


def test_records_name_the_whole_path_also_of_a_relative_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "data" / "train.jsonl", choices("Jigsaw", 1, photos=1))
    monkeypatch.chdir(tmp_path)
    [got] = read_records(Path("data/train.jsonl"))
    assert all(Path(name).is_absolute() for name in got["images"])


def test_lessons_have_right_options_at_all_letters_and_no_perception(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    things = ["A wrench.", "A robin.", "A lotus.", "An ibis.", "A water lily."]
    records = [record("Naming", i, "What is this?", things[i % 5], ("a.png",)) for i in range(60)]
    letters = "A" * 30 + "B" * 12 + "CD" * 8
    ask = "Which letter is drawn at the mark?"
    records += [record("Reading", i, ask, x, ("a.png",)) for i, x in enumerate(letters)]
    records += choices("Counting", 4, photos=1) + choices("Visual_Similarity", 4, photos=1)
    for r in records:
        r["images"] = ["a.png"]
    taught = lessons(records)
    assert {r["sub_task"] for r in taught} == set(SHARES) - {"Spatial_Relation"}
    drawn = Counter(answer_of(r) for r in taught if r["sub_task"] == "Reading_Choice")
    assert drawn == dict.fromkeys(("(A)", "(B)", "(C)", "(D)"), 8)
    write_records(tmp_path / "lessons.jsonl", taught)
    named = {r["id"]: answer_of(r).rstrip(".").lower() for r in records}
    examples = conversation_examples(read_conversations(tmp_path / "lessons.jsonl"))
    found = [e.question for e in examples if e.question and e.question.sub_task == "Naming_Choice"]
    assert len(found) == 60 and {len(q.choices) for q in found} == {2, 3, 4}
    assert {q.letter for q in found} == {"(A)", "(B)", "(C)", "(D)"}
    for question in found:
        assert question.choices[question.answer] == named[question.id.removesuffix("_choice")]
        assert len(set(question.choices)) == len(question.choices)


def test_a_rate_is_searched_in_short_runs_on_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "RUNS", tmp_path / "runs")
    data = tmp_path / "data" / "train.jsonl"
    write_records(data, [*choices("Jigsaw", 60, photos=60), *choices("Counting", 60, photos=60)])
    grid = Grid(
        families=("pico",), own="PICO", arms=("lora", "format"), rates=(1e-3, 3e-3), seeds=(0,),
        data=str(data), mix={"Jigsaw": 1, "Counting": 1}, steps=9, search_steps=2, jobs=1,
    )  # fmt: skip
    prepare("pico", grid)
    kept = {r["id"] for r in read_records(tmp_path / "runs" / "pico" / "val.jsonl")}
    learned = read_records(tmp_path / "runs" / "pico" / "train.jsonl")
    assert kept and not kept & {r["id"] for r in learned}
    assert learned[0]["images"][0].startswith(str(data.parent))
    commands: list[list[str]] = []

    def run(trial: Trial, what: str, command: list[str]) -> None:
        commands.append(command)
        if what == "val":
            file = Path(next(word for word in command if word.endswith("val.json")))
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"macro": 0.5 + trial.rate}))
            assert command[-1].endswith("val.jsonl")

    monkeypatch.setattr(experiment, "_run", run)
    monkeypatch.setattr(experiment, "test", lambda trial, grid: None)
    experiment.search("lora", grid)
    trained = [load_config(Recipe, None, c[4:]) for c in commands if "--config" in c]
    assert [(r.steps, r.rates.lm) for r in trained] == [(2, 1e-3), (2, 3e-3), (9, 3e-3)]
    assert len({r.out for r in trained}) == 3
    assert {r.data for r in trained} == {str(tmp_path / "runs" / "pico" / "train.jsonl")}


def test_a_training_finds_its_folder_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "RUNS", tmp_path)
    trial = Trial("pico", "lora", 0.0012, 0)
    experiment._run(trial, "train", [sys.executable, "-c", "print('said')"])
    assert not trial.folder.exists()
    assert (tmp_path / "pico" / "lora-0.0012-0.train.txt").read_text() == "said\n"


def test_settings_from_before_a_setting_was_there_are_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "RUNS", tmp_path)
    check_settings("one", Grid())
    file = tmp_path / "one" / "settings.json"
    there = json.loads(file.read_text())
    del there["search_steps"]
    file.write_text(json.dumps(there))
    check_settings("one", Grid())
    with pytest.raises(ValueError, match="found others in search_steps"):
        check_settings("one", Grid(search_steps=4))


def test_the_grid_of_pico_is_read_and_no_kind_is_most_of_it() -> None:
    grid = load_config(Grid, ROOT / "recipes" / "experiment" / "pico.yaml", ["own=PICO"])
    assert len(grid.rates) == 3 and max(grid.mix.values()) / sum(grid.mix.values()) <= 0.3
    recipe = load_config(Recipe, ROOT / "recipes" / grid.config)
    assert set(recipe.losses.distil.kinds) <= set(grid.mix)


def test_rules_without_a_model_choose_by_colour_file_and_place() -> None:
    images = tuple(Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (100, 200, 90))
    named = ("the second image", "the third image")
    question = Question("a", "a", "Visual_Similarity", images, "?", named, 1, official_prompt="?")
    assert by_images(question, [1, 9, 8]) == {"larger file": 0, "mean colour": 1}
    at = [[50, 40], [5, 5], [60, 50]]
    assert by_points((100, 100), at, [58, 50]) == {"farther from centre": 1, "place of REF": 2}
    assert by_points((100, 100), at) == {"farther from centre": 1}


def test_what_is_had_without_a_model_is_counted_by_kind(tmp_path: Path) -> None:
    blink(tmp_path, {"Counting": 3})
    named = ["the second image", "the third image"]
    puzzles = [row("Jigsaw", k, images=3, choices=named) for k in (1, 2)]
    write(tmp_path / "Jigsaw" / "val-00000-of-00001.parquet", puzzles)
    found = without_model(tmp_path)
    assert {kind: of.n for kind, of in found.items()} == {"Counting": 3, "Jigsaw": 2}
    assert set(found["Counting"].right) == {"commonest answer"}
    assert set(found["Jigsaw"].right) == {"commonest answer", "larger file", "mean colour"}
    assert [len(sizes) for sizes in file_sizes(tmp_path).values()] == [1, 1, 1, 3, 3]


def test_rules_stand_beside_readouts_of_the_dataset_that_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "RUNS", tmp_path / "runs")
    blink(tmp_path / "BLINK", {"Counting": 3})
    said = tmp_path / "runs" / "pico" / "base" / "mcq" / "samples"
    said.mkdir(parents=True)
    answer = {"correct": 1, "logprob_correct": 1, "logprobs": [-1, -2], "logprob_letter": "A"}
    answer |= {"task": "Counting", "cluster": "a", "answer": "A", "letter": "A", "unparsed": False}
    for data, n in (("blink", 3), ("mcq", 2)):
        rows = [json.dumps(answer | {"id": f"{data}_{i}"}) + "\n" for i in range(n)]
        (said / f"mcq.{data}.jsonl").write_text("".join(rows))
    arms = {"base": [Trial("pico", "base")]}
    assert len(answers(arms["base"][0], data="blink").ids) == 3
    assert len(answers(arms["base"][0], data="mcq").ids) == 2
    _, _, counted = readouts_table(arms, data="blink", folder=tmp_path / "BLINK")
    assert counted.startswith("| Counting | 3 |") and counted.endswith("|  |  |")
