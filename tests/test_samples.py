"""Samples on disk: whatever byte a crash stops at, whole units stay and torn ones go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvfix.eval.samples import Row, SampleFile


def unit(name: str, rows: int) -> list[Row]:
    """Rows of one unit with a name that is no ASCII."""
    return [{"id": f"{name}é\n", "layer": layer, "score": layer / 3} for layer in range(rows)]


UNITS = [unit("a", 1), unit("b", 3), unit("c", 3)]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Three units; the last block is the one that gets torn."""
    path = tmp_path / "deep" / "samples" / "task.jsonl"
    file = SampleFile(path)
    for rows in UNITS:
        file.append(rows)
    return path


def test_rows_come_back_as_they_were_written(whole: Path) -> None:
    again = SampleFile(whole)
    assert [{k: v for k, v in r.items() if k != "rows"} for r in again.rows] == [
        row for rows in UNITS for row in rows
    ]
    assert [r["rows"] for r in again.rows] == [1, 3, 3, 3, 3, 3, 3]
    assert again.done == {rows[0]["id"] for rows in UNITS}
    assert len(whole.read_text().splitlines()) == 7


def test_a_file_torn_at_any_byte_keeps_exactly_the_whole_units(whole: Path) -> None:
    text = whole.read_bytes()
    lines = text.splitlines(keepends=True)
    start_of = {n: sum(map(len, lines[: sum(map(len, UNITS[:n]))])) for n in range(4)}
    for cut in range(len(text) + 1):
        whole.write_bytes(text[:cut])
        kept = max(n for n in range(4) if start_of[n] <= cut)
        file = SampleFile(whole)
        assert file.done == {rows[0]["id"] for rows in UNITS[:kept]}, cut
        assert whole.read_bytes() == text[: start_of[kept]], cut
        for rows in UNITS[kept:]:
            file.append(rows)
        assert whole.read_bytes() == text, cut


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 64,  # blocks that a file system promised and never wrote
        b"\0" * 64 + b"\n",
        b"{}\n",
        b"[1]\n",
        b"\xff\xfe\n",
        b'{"id": "d", "rows": 3}\n{"id": "e", "rows": 2}\n',  # d never ended
    ],
)
def test_garbage_is_cut_off(whole: Path, garbage: bytes) -> None:
    text = whole.read_bytes()
    whole.write_bytes(text + garbage)
    assert len(SampleFile(whole).rows) == 7
    assert whole.read_bytes() == text


def test_damage_in_the_middle_costs_what_follows_only(whole: Path) -> None:
    lines = whole.read_bytes().splitlines(keepends=True)
    whole.write_bytes(b"".join([*lines[:2], b"x" + lines[2], *lines[3:]]))
    assert SampleFile(whole).done == {UNITS[0][0]["id"]}
    assert whole.read_bytes() == lines[0]


@pytest.mark.parametrize("rows", [[], [{"id": "a"}, {"id": "b"}]])
def test_only_whole_units_are_appended(tmp_path: Path, rows: list[Row]) -> None:
    with pytest.raises(ValueError, match="rows of one unit"):
        SampleFile(tmp_path / "t.jsonl").append(rows)


def test_what_json_cannot_hold_leaves_the_file_alone(whole: Path) -> None:
    text, file = whole.read_bytes(), SampleFile(whole)
    with pytest.raises(ValueError, match="JSON"):
        file.append([{"id": "d", "score": 0.5}, {"id": "d", "score": float("nan")}])
    assert whole.read_bytes() == text and len(file.rows) == 7


def test_lines_are_plain_json(whole: Path) -> None:
    assert all(json.loads(line)["id"] for line in whole.read_text(encoding="ascii").splitlines())
