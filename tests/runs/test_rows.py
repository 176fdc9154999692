"""Rows come back as they were written, and those of older runs are read as what they are today."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvfix.runs.folder import RunFolder
from kvfix.runs.resume import OtherRun
from kvfix.runs.rows import (
    KINDS,
    SCHEMA,
    AnswerRow,
    LeftOutRow,
    ProbeRow,
    ReadoutRow,
    Row,
    Rows,
    WithoutReadoutRow,
    from_json,
    to_json,
)

AT = ("value", 3, None)
PROBE = ProbeRow("u1", "c", "cosegmentation", "scenes", *AT, "J", 0.5, 0.1, more={"inter": 3.0})
ROWS: list[Row] = [
    PROBE,
    ReadoutRow("q1", "q1", "readout", "Art_Style", "scenes", *AT, "accuracy", 1.0, 2),
    AnswerRow(
        *("q1", "q1", "mcq", "Art_Style", 1, "B", "B", False, "scenes"),
        logprobs=(-1.0, -0.5),
        question="Which?",
        options=("this", "that"),
        images=("a.png", "b.png"),
    ),
    LeftOutRow("u2", "cosegmentation", "2.png: torn", "scenes"),
    WithoutReadoutRow("q2", "readout", "no marker", "Jigsaw", "scenes"),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.kind for row in ROWS])
def test_a_row_comes_back_as_it_was_written(row: Row) -> None:
    line = json.dumps(to_json(row) | {"rows": 1})
    assert from_json(json.loads(line), "here") == replace(row, rows=1)


def test_every_kind_is_tried() -> None:
    assert [row.kind for row in ROWS] == list(KINDS)


def test_a_place_is_written_even_where_there_is_none() -> None:
    written = to_json(replace(PROBE, site=None, layer=None))
    assert written["site"] is written["layer"] is written["head"] is written["control"] is None
    assert written["inter"] == 3.0 and "ceiling" not in written and "more" not in written


OLD = {"id": "q1", "cluster": "q1", "dataset": "scenes", "rows": 1}
PLACE = {"site": "value", "layer": 3, "head": None, "metric": "accuracy", "score": 1.0}
READ = {"task": "readout_Art_Style", "choice": 1}
SAID = {"correct": 1, "letter": "B", "answer": "B", "unparsed": False}


@pytest.mark.parametrize(
    ("line", "kind", "task", "subtask"),
    [
        (OLD | PLACE | {"task": "cosegmentation"}, ProbeRow, "cosegmentation", None),
        (OLD | PLACE | {"task": "x", "correct": 3.0, "points": 4.0}, ProbeRow, "x", None),
        (OLD | PLACE | READ, ReadoutRow, "readout", "Art_Style"),
        (OLD | SAID | {"task": "Art_Style"}, AnswerRow, "mcq", "Art_Style"),
        ({"id": "u", "task": "x", "left_out": "torn", "rows": 1}, LeftOutRow, "x", None),
    ],
)  # fmt: skip
def test_rows_of_schema_0_are_read(
    line: dict[str, Any], kind: type, task: str, subtask: str | None
) -> None:
    row = from_json(line, "here")
    assert type(row) is kind and row.task == task
    assert getattr(row, "subtask", None) == subtask


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"kind": "song"}, "a.jsonl:7: expected a kind of probe, readout"),
        ({"metric": None, "score": "0.5"}, "a.jsonl:7: expected a finite score, found '0.5'"),
        ({"id": 3}, "a.jsonl:7: expected texts as id"),
    ],
)
def test_what_is_no_row_is_named_with_its_place(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_json(to_json(PROBE) | changed, "a.jsonl:7")
    lacking = {k: v for k, v in to_json(PROBE).items() if k != "cluster"}
    with pytest.raises(ValueError, match=r"a.jsonl:7: expected cluster, found \["):
        from_json(lacking, "a.jsonl:7")


def test_rows_of_one_class_are_taken_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    assert not Rows(file, ProbeRow)
    file.write_text("".join(json.dumps(to_json(row)) + "\n" for row in ROWS))
    assert list(Rows(file, ProbeRow)) == [PROBE] and len(Rows(file, AnswerRow)) == 1
    assert not Rows(file, ProbeRow, lambda row: row.id != "u1")
    quoting = replace(PROBE, id='{"kind": "left_out"')  # a text that looks like another kind
    file.write_text(json.dumps(to_json(quoting)) + "\n" + json.dumps({"kind": "song"}) + "\n")
    with pytest.raises(ValueError, match=r"x\.jsonl:2: expected a kind of"):
        list(Rows(file, LeftOutRow))
    assert next(iter(Rows(file, ProbeRow))) == quoting


def test_a_run_of_another_schema_is_not_gone_on_with(tmp_path: Path) -> None:
    made = {"kind": "eval", "command": "", "fingerprint": {"seed": 0}}
    run = RunFolder(tmp_path, **made)
    assert run.record["schema"] == SCHEMA and RunFolder(tmp_path, **made).resumed
    record = json.loads(run.file.read_text())
    del record["schema"]
    run.file.write_text(json.dumps(record))
    with pytest.raises(OtherRun, match="expected samples of schema 1, found schema 0") as error:
        RunFolder(tmp_path, **made)
    assert "choose another --out" in str(error.value) and "\n" not in str(error.value)
