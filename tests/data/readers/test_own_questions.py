"""Questions of one's own: read from columns and from conversations, answered by the suite."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import call

from kvfix.data.catalog import check, load_units, notes
from kvfix.data.readers.choices import lettered_lines, read_answer, read_choices
from kvfix.data.scenes.questions import scene_question
from kvfix.data.units import BadUnit, Question, UnitSet
from kvfix.runs.rows import AnswerRow

COLUMNS = {"image_1": "0.png", "question": "What is it?", "choices": ["a cow", "a hen"]}
ASKED = "<image>\nWhat is it?\n(A) a cow\n(B) a hen"
TURNS = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "(B)"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(3):
        tiny.photo(60, 100, seed=k).save(tmp_path / f"{k}.png")
    return tmp_path


def write(folder: Path, *rows: Any, name: str = "birds.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def units_of(path: Path) -> UnitSet:
    [units] = load_units([f"mcq={path}"], questions=True)
    return units


def read(folder: Path, *rows: Any) -> list[Question]:
    units = units_of(write(folder, *rows))
    found = [units.load(units.ids.index(name)) for name in sorted(units.ids, key=_number)]
    assert all(isinstance(q, Question) for q in found)
    return found  # type: ignore[return-value]


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def test_columns_and_conversations_give_the_same_question(folder) -> None:
    spoken = {"images": ["0.png"], "messages": TURNS}
    llava = {
        "image": "0.png",
        "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "B"}],
    }
    parts = {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED[8:]}]},
            {"role": "assistant", "content": [{"type": "text", "text": "B. a hen"}]},
        ],
        "images": ["0.png"],
    }
    beside = {
        "image": "0.png",
        "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "?"}],
        "options": {"A": "a cow", "B": "a hen"},
        "answer": "B",
    }
    found = read(folder, COLUMNS | {"answer": "B"}, spoken, llava, parts, beside)
    for question in found:
        assert (question.choices, question.answer) == (("a cow", "a hen"), 1)
        assert question.sub_task == "birds" and [i.size for i in question.images] == [(100, 60)]
        assert question.letter == "(B)"
    built = "What is it?\nChoose one option:\n(A) a cow\n(B) a hen"
    own = "What is it?\n(A) a cow\n(B) a hen"
    assert [q.prompt for q in found] == [built, own, own, own, built]
    assert len({q.cluster for q in found}) == 1  # one photo


def test_a_prompt_is_asked_word_for_word(folder) -> None:
    prompt = "Hm?\nSelect from the following choices.\n(A) a cow\n(B) a hen"
    [question] = read(folder, COLUMNS | {"prompt": prompt, "answer": "(A)"})
    assert question.prompt == prompt and question.question == "What is it?"
    [question] = read(folder, {"image_1": "0.png", "prompt": prompt, "answer": "(A)"})
    assert question.prompt == prompt and question.choices == ("a cow", "a hen")


def test_several_images_and_their_order(folder) -> None:
    row = COLUMNS | {"image_1": "2.png", "image_2": {"path": "1.png"}, "answer": 0}
    data = base64.b64encode((folder / "0.png").read_bytes()).decode()
    row["image_3"] = f"data:image/png;base64,{data}"
    [question] = read(folder, row)
    expected = [tiny.photo(60, 100, seed=k) for k in (2, 1, 0)]
    assert [i.tobytes() for i in question.images] == [i.tobytes() for i in expected]


def test_sub_tasks_are_kept_and_taken_in_turn(folder) -> None:
    rows = [COLUMNS | {"answer": "A", "sub_task": s} for s in ("Two words", "Two words", "x")]
    rows[1]["idx"] = "val_Two_words_7"
    units = units_of(write(folder, *rows))
    assert units.ids == ("mcq_Two_words_1", "mcq_x_3", "val_Two_words_7")
    assert (units.task, units.dataset, units.split) == ("mcq", "mcq", "own")
    assert units.load(1).sub_task == "x" and units.cluster == "first image"
    assert notes(f"mcq={folder / 'birds.jsonl'}") == ["3 questions: Two_words 2, x 1"]


def test_a_change_of_anything_changes_the_digest(folder) -> None:
    rows = [COLUMNS | {"answer": "A"}, COLUMNS | {"answer": "A", "image_1": "1.png"}]
    before = units_of(write(folder, *rows)).sha256
    assert units_of(write(folder, *rows)).sha256 == before
    assert units_of(write(folder, rows[0], rows[1] | {"answer": "B"})).sha256 != before
    assert units_of(write(folder, rows[0])).sha256 != before
    tiny.photo(40, 90).save(folder / "1.png")
    assert units_of(write(folder, *rows)).sha256 != before


def test_tables_and_lists_are_read(folder) -> None:
    from datasets import Dataset, Image

    rows = [COLUMNS | {"answer": x, "image_1": {"bytes": b"", "path": None}} for x in "AB"]
    for row in rows:
        row["image_1"]["bytes"] = (folder / "0.png").read_bytes()
    made = Dataset.from_list(rows).cast_column("image_1", Image())
    (folder / "data").mkdir()
    made.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    made.select([0]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    units = units_of(folder / "data")
    assert units.ids == ("mcq_data_1",) and units.load(0).answer == 0  # held out, not trained
    assert len(units_of(folder / "data" / "train-00000-of-00001.parquet")) == 2
    (folder / "x.json").write_text(json.dumps([COLUMNS | {"answer": "A"}] * 2))
    assert units_of(folder / "x.json").ids == ("mcq_x_1", "mcq_x_2")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (COLUMNS, ["expected an answer"]),
        (COLUMNS | {"answer": "C"}, ["one letter out of AB", "'C'"]),
        (COLUMNS | {"answer": "A", "choices": ["a cow"]}, ["2 to 10 choices"]),
        (COLUMNS | {"answer": "A", "choices": list("abcdefghijk")}, ["2 to 10 choices"]),
        (COLUMNS | {"answer": "A", "choices": ["a cow", "A cow."]}, ["choices that differ"]),
        (COLUMNS | {"answer": "A", "choices": None}, ["or lines (A) .., (B) .."]),
        (COLUMNS | {"answer": "A", "question": " "}, ["question, a text"]),
        ({"image_1": "0.png", "choices": ["a", "b"], "answer": "A"}, ["question or prompt"]),
        (COLUMNS | {"answer": "A", "image_1": None}, ["at least one image"]),
        (COLUMNS | {"answer": "A", "image_1": "no.png"}, ["no.png", "no such file"]),
        (COLUMNS | {"answer": "A", "image_1": "cut.png"}, ["cut.png", "expected a photo"]),
        (COLUMNS | {"answer": "A", "question": "Is <image>?"}, ["before the question"]),
        ({"images": ["0.png"], "messages": TURNS[:1]}, ["end with the assistant's"]),
        ({"images": ["0.png"], "messages": [*TURNS, *TURNS]}, ["<image> for each of 1 images"]),
        (
            {"images": ["0.png"], "messages": [{"role": "system", "content": "x"}, *TURNS]},
            ["one question of the user", "system, user, assistant"],
        ),
        ("{", ["JSON object"]),
        ([1], ["JSON object", "[1]"]),
    ],
)
def test_a_bad_question_is_left_out_and_says_why(folder, row, words) -> None:
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:200])
    path = write(folder, COLUMNS | {"answer": "A"})
    with path.open("a") as file:
        file.write(f"{row if isinstance(row, str) else json.dumps(row)}\n")
    units = units_of(path)
    assert len(units) == 2
    with pytest.raises(BadUnit) as raised:
        units.load(1)
    text = str(raised.value)
    assert "birds.jsonl: line 2 (mcq_birds_2): " in text and "expected" in text
    assert all(word in text for word in words), text
    assert check(f"mcq={path}") == [text]
    assert isinstance(units.load(0), Question)


def test_numbers_that_count_from_1_are_refused_in_the_whole_file(folder) -> None:
    rows = [COLUMNS | {"answer": n} for n in (1, 2, 1)]
    for problem in check(f"mcq={write(folder, *rows)}"):
        assert "numbers that count from 0 in every question" in problem
    assert len(check(f"mcq={write(folder, *rows)}")) == 3
    assert check(f"mcq={write(folder, *rows[::2], COLUMNS | {'answer': 'B'})}") == []


@pytest.mark.parametrize(
    ("answer", "choices", "index"),
    [
        *(("B", ("x", "y"), 1), ("(b)", ("x", "y"), 1), ("B.", ("x", "y"), 1)),
        *(("B. y", ("x", "y"), 1), ("(B) y.", ("x", "y"), 1), ("Y", ("x", "y"), 1)),
        *((1, ("x", "y"), 1), ("1", ("x", "y"), 1), (["B"], ("x", "y"), 1)),
        ("J", tuple("klmnopqrst"), 9),
        ("the point B", ("the point A", "the point B"), 1),
        ("A", ("A", "B"), 0),  # both readings agree
        ("1", ("0", "1"), 1),
        *(("A", ("B", "A"), None), ("2", ("3", "2", "1"), None), ("B. x", ("x", "y"), None)),
        *(("C", ("x", "y"), None), ("", ("x", "y"), None), (True, ("x", "y"), None)),
        *((2, ("x", "y"), None), ("x or y", ("x", "y"), None), (None, ("x", "y"), None)),
        *((["A", "B"], ("x", "y"), None), (0.5, ("x", "y"), None)),
    ],
)
def test_answers_are_read_or_refused_never_guessed(answer, choices, index) -> None:
    if index is None:
        with pytest.raises(ValueError, match=r"^expected an answer"):
            read_answer(answer, choices)
    else:
        assert read_answer(answer, choices) == index


def test_choices_are_lists_mappings_or_either_as_text() -> None:
    for given in (["x", "y"], {"A": "x", "B": "y"}, '["x", "y"]', "['x', 'y']"):
        assert read_choices(given) == ("x", "y")
    assert read_choices(["(A) x", "(B) y"]) == read_choices(["A. x", "B. y"]) == ("x", "y")
    assert read_choices(["(B) x", "(A) y"]) == ("(B) x", "(A) y")
    assert read_choices([1, 2.5]) == ("1", "2.5")
    for wrong in ("[1, 2", "__import__('os')", [["x"], ["y"]], {"A": "x"}, 7, None):
        with pytest.raises(ValueError, match=r"^expected"):
            read_choices(wrong)


def test_lettered_lines_are_the_last_whole_list() -> None:
    assert lettered_lines("Which?\n(A) one\n(B) two") == ("one", "two")
    assert lettered_lines("Which?\nA. one\nB. two\nAnswer.") == ("one", "two")
    assert lettered_lines("A) x\nB) y\n\nAgain:\nA: one\nB: two\nC: three") == (
        "one",
        "two",
        "three",
    )
    assert lettered_lines("(A) one\n(C) two") == () == lettered_lines("A cow\nB hens")


@pytest.fixture
def held_out(folder: Path) -> Path:
    """Questions of the scenes in both forms, one of eight options, and a bad one of many."""
    rows = []
    for k in range(20):
        question = scene_question("test", ("Visual_Similarity", "Counting")[k % 2], k)
        names = [f"q{k}_{i}.png" for i in range(len(question.images))]
        for name, image in zip(names, question.images, strict=True):
            image.save(folder / name)
        row: dict[str, Any] = {"sub_task": question.sub_task}
        if k < 10:
            row |= {f"image_{i}": name for i, name in enumerate(names, start=1)}
            row |= {"question": question.question, "choices": list(question.choices)}
            row["answer"] = question.letter
        else:
            said = "<image>" * len(names) + question.prompt
            row |= {"images": names, "messages": [{"role": "user", "content": said}]}
            row["messages"].append({"role": "assistant", "content": question.letter})
        rows.append(row)
    rows.append(COLUMNS | {"choices": list("klmnopqrst"), "answer": "(J)"})
    return write(folder, *rows, COLUMNS | {"answer": "?"})


def test_the_suite_asks_them_and_runs_are_compared(held_out, tmp_path) -> None:
    for out in ("before", "after"):
        args = ("--data", f"mcq={held_out}", "--site", "value", "--dtype", "float32")
        ended = call("eval", *args, "--out", tmp_path / out)
        assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "before" / "run.json").read_text())
    assert {r["dataset"] for r in record["results"]} == {"mcq"}
    tasks = {r.get("subtask") for r in record["results"]}
    assert tasks >= {"Visual_Similarity", "Counting", "birds"}
    [left_out] = record["left_out"]
    assert left_out["id"] == "mcq_birds_22" and "one letter out of AB" in left_out["why"]
    assert any(
        (r["task"], r.get("subtask")) == ("readout", "Visual_Similarity") for r in record["results"]
    )
    assert sum(record["without_readout"]["mcq"].values()) == 11
    rows = [
        json.loads(line)
        for line in (tmp_path / "before" / "samples" / "mcq.mcq.jsonl").read_text().splitlines()
    ]
    [ten] = [row for row in rows if row["id"] == "mcq_birds_21"]
    assert len(ten["logprobs"]) == 10 and ten["answer"] == "J"
    same = {r.id: r for r in _scenes(tmp_path)}
    for k in range(20):  # as the scenes themselves are answered, in whichever form
        task = ("Visual_Similarity", "Counting")[k % 2]
        [row] = [r for r in rows if r["id"] == f"mcq_{task}_{k + 1}"]
        expected = same[f"test_{task}_{k}"]
        assert row["letter"] == expected.letter and row["answer"] == expected.answer
        assert row["logprobs"] == pytest.approx(expected.logprobs, abs=1e-3)
    ended = call("compare", tmp_path / "before", tmp_path / "after", "--out", tmp_path / "both")
    assert ended.code == 0 and "mcq" in ended.err, ended.err


def _scenes(folder: Path) -> list[AnswerRow]:
    """The same questions, made on the spot."""
    from kvfix.eval.mcq.answer import answer
    from kvfix.eval.mcq.prompt import McqProtocol
    from kvfix.eval.mcq.run import question_row
    from kvfix.mlm.load import load_mlm
    from kvfix.shipped import nano_dir

    names = [("Visual_Similarity", "Counting")[k % 2] for k in range(20)]
    asked = [scene_question("test", name, k) for k, name in enumerate(names)]
    mlm, protocol = load_mlm(str(nano_dir()), dtype=torch.float32), McqProtocol()
    rows = []
    for task in set(names):
        mine = [q for q in asked if q.sub_task == task]
        found = answer(mlm, mine, protocol)
        rows += [question_row(q, "scenes", a) for q, a in zip(mine, found, strict=True)]
    return rows


def test_a_diagnosis_asks_those_that_have_a_readout(held_out, tmp_path) -> None:
    args = ("--only", "surfacing", "--limit", "8", "--out", tmp_path / "out")
    ended = call("diagnose", "--data", f"mcq={held_out}", *args)
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {r["subtask"] for r in record["surfacing"]} == {"Visual_Similarity"}
    other = write(held_out.parent, COLUMNS | {"answer": "A"}, name="other.jsonl")
    args = ("--only", "surfacing", "--out", tmp_path / "none")
    ended = call("diagnose", "--data", f"mcq={other}", *args)
    assert ended.code == 0 and "expected questions whose sub_task has a readout" in ended.err
