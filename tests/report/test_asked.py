"""Questions that open: what was read, what was written, and what changed between two runs."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from kvfix.eval.mcq.pictures import picture_file
from kvfix.report.asked import asked, changed
from kvfix.report.pictures.album import Album
from kvfix.runs.rows import AnswerRow, ReadoutRow, to_json

SITE = {"site": "value", "layer": 3, "head": None, "metric": "accuracy"}
SURFACING = [
    {"dataset": "scenes", "subtask": "Jigsaw", "scoring": "generation", "layer": 3},
    {"dataset": "scenes", "subtask": "Jigsaw", "scoring": "logprob", "layer": 5},
]


def answer(name: str, *, correct: int, text: str = "(A)", subtask: str = "Jigsaw") -> AnswerRow:
    letter = "B" if correct else "A"
    what = {"question": f"Which of {name}?", "options": ("one", "two"), "images": ("a", "b")}
    common = {"id": name, "cluster": name, "task": "mcq", "subtask": subtask, "dataset": "scenes"}
    said = {"letter": letter, "answer": "B", "unparsed": False, "text": text}
    return AnswerRow(**common, **said, **what, correct=correct, logprobs=(-1.0, -2.0))


def readout(name: str, choice: int, layer: int = 3) -> ReadoutRow:
    common = {"id": name, "cluster": name, "task": "readout", "subtask": "Jigsaw"}
    where = {**SITE, "layer": layer, "dataset": "scenes"}
    return ReadoutRow(**common, **where, score=float(choice == 1), choice=choice)


def write(folder: Path, answers: list[AnswerRow], readouts: list[ReadoutRow] | None = None) -> Path:
    """A run folder with samples, and a picture for each question."""
    (folder / "samples").mkdir(parents=True)
    for file, rows in (("mcq", answers), ("readout", readouts or [])):
        lines = "".join(json.dumps(to_json(row)) + "\n" for row in rows)
        (folder / "samples" / f"{file}.jsonl").write_text(lines)
    for row in answers:
        path = folder / picture_file("scenes", row.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(path)
    return folder


def test_a_question_shows_what_the_reported_layer_reads_and_what_was_written(
    tmp_path: Path,
) -> None:
    answers = [answer("both", correct=1), answer("unsaid", correct=0, text="(A) one")]
    readouts = [readout("both", 1), readout("unsaid", 1), readout("unsaid", 0, layer=5)]
    folder = write(tmp_path / "run", answers, readouts)
    found = asked(folder, SURFACING, Album(folder))
    assert [(q.id, q.outcome) for q in found] == [("unsaid", "unsurfaced"), ("both", "both right")]
    first = found[0]
    assert (first.right, first.readout, first.said) == (1, 1, (("the model", "(A) one"),))
    assert first.logprobs == (-1.0, -2.0) and first.options == ("one", "two")
    assert first.picture is not None and first.picture.uri.startswith("data:image/webp;base64,")


def test_a_question_without_readout_is_right_or_wrong(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [answer("a", correct=1), answer("b", correct=0)])
    outcomes = {q.id: (q.outcome, q.readout) for q in asked(folder, [], Album(folder))}
    assert outcomes == {"a": ("right", None), "b": ("wrong", None)}


def test_questions_that_changed_come_broken_first_with_both_answers(tmp_path: Path) -> None:
    before = [answer("a", correct=0), answer("b", correct=1), answer("c", correct=1)]
    after = [answer("a", correct=1, text="(B)"), answer("b", correct=0), answer("c", correct=1)]
    old, new = write(tmp_path / "old", before), write(tmp_path / "new", after)
    found = changed(old, new, Album(new))
    assert [(q.id, q.outcome) for q in found] == [("b", "broken"), ("a", "fixed")]
    assert found[1].said == (("before", "(A)"), ("after", "(B)"))


def test_a_page_that_is_full_names_its_pictures(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [answer("a", correct=1)])
    album = Album(folder)
    album._left = 10
    [q] = asked(folder, [], album)
    assert q.picture is not None and q.picture.uri is None and q.picture.link.endswith(".webp")
