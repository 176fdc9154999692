"""Samples on disk: whatever byte a crash stops at, whole units stay and torn ones go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvfix.runs.samples import Line, SampleFile


def unit(name: str, rows: int) -> list[Line]:
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
    assert [{k: v for k, v in r.items() if k != "rows"} for r in again.lines] == [
        row for rows in UNITS for row in rows
    ]
    assert [r["rows"] for r in again.lines] == [1, 3, 3, 3, 3, 3, 3]
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
    assert len(list(SampleFile(whole).lines)) == 7
    assert whole.read_bytes() == text


JUNK = b"\xff\0\n\x80\n"
Lines = list[bytes]  # a1, b1 to b3, c1 to c3
DAMAGE: dict[str, tuple[Callable[[Lines], bytes], str, str, int]] = {
    # what happened -> the file then, the units lost, the line named, how many are scored again
    "a letter before a row": (lambda x: join(x, {2: b"x" + x[2]}), "b", "2 and 2 more", 1),
    "binary junk instead of a row": (lambda x: join(x, {3: JUNK}), "b", "2 and 3 more", 1),
    "blocks that were never written": (lambda x: join(x, {0: b"\0" * 4096 + x[0]}), "a", "1", 1),
    "a missing newline": (lambda x: join(x, {0: x[0][:-1]}), "ab", "1 and 2 more", 1),
    "a line lost": (lambda x: join(x, {2: b""}), "b", "2 and 1 more", 1),
    "a line twice": (lambda x: join(x, {2: x[2] * 2}), "b", "2 and 3 more", 1),
    "a line in the place of another": (lambda x: join(x, {2: x[1]}), "b", "2 and 2 more", 1),
    "a wrong number of rows": (lambda x: join(x, {2: rows(x[2], 5)}), "b", "2 and 2 more", 1),
    "no row can be that many": (lambda x: join(x, {0: rows(x[0], 0)}), "a", "1", 1),
    "rows that are no number": (lambda x: join(x, {0: rows(x[0], True)}), "a", "1", 1),
    "a score that is none": (lambda x: join(x, {0: x[0].replace(b"0.0", b"NaN")}), "a", "1", 1),
    "brackets without end": (lambda x: join(x, {0: b"[" * 10**6 + b"\n"}), "a", "1", 1),
    "another encoding": (lambda x: join(x, {0: utf16(x[0])}), "ab", "1 and 3 more", 1),
    "the unit again": (lambda x: b"".join([*x, *x[1:4]]), "", "8 and 2 more", 0),
    "the unit again with another score": (
        lambda x: b"".join([*x, x[0].replace(b"0.0", b"0.5")]), "a", "1 and 1 more", 1,
    ),
    "two writers": (lambda x: join([x[int(i)] for i in "1425360"], {}), "bc", "1 and 5 more", 2),
    "two writers in one line": (
        lambda x: b"".join([x[0][:9], *x[1:4], x[0][9:], *x[4:]]), "ab", "1 and 3 more", 1,
    ),
    "empty lines": (lambda x: join(x, {1: b"\n \n" + x[1]}), "", "2 and 1 more", 0),
    "everything": (lambda x: b"\0" * 99 + b"\n?\n!\n", "abc", "1 and 2 more", 3),
}  # fmt: skip


def join(lines: Lines, changed: dict[int, bytes]) -> bytes:
    return b"".join(changed.get(i, line) for i, line in enumerate(lines))


def utf16(line: bytes) -> bytes:
    return line.decode().encode("utf-16")


def rows(line: bytes, n: int) -> bytes:
    return json.dumps(json.loads(line) | {"rows": n}).encode() + b"\n"


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_costs_the_units_it_hit_and_is_said(
    what: str, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = whole.read_bytes()
    lines = text.splitlines(keepends=True)
    damage, lost, named, again = DAMAGE[what]
    whole.write_bytes(damage(lines))
    file = SampleFile(whole)
    of = dict(zip("abc", UNITS, strict=True))
    names = [rows[0]["id"] for rows in UNITS]
    assert file.done == {of[u][0]["id"] for u in "abc" if u not in lost}
    [said] = [r.getMessage() for r in caplog.records]
    assert said.startswith(f"{whole}: expected whole units, found line {named} damaged or repeated")
    units = f"{again} unit{'s are' if again != 1 else ' is'}"
    assert f"{units} scored again, {3 - len(lost)} kept" in said
    assert ("; at least " in said) == (again != len(lost) or "instead" in what or "before" in what)
    caplog.clear()
    assert SampleFile(whole).done == file.done  # healed once
    for unit in lost:
        file.append(of[unit])
    file.sort(names)
    assert whole.read_bytes() == text  # as if nothing had happened, to the byte
    SampleFile(whole).sort(names)
    assert whole.read_bytes() == text and caplog.records == []


def test_a_torn_end_is_no_damage(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = whole.read_bytes()
    for cut in range(0, len(text) + 1, 5):
        whole.write_bytes(text[:cut])
        SampleFile(whole)
        whole.write_bytes(text[:cut] + b"\0" * 512)  # a power cut
        SampleFile(whole)
    assert caplog.records == []


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_crash_while_healing_loses_nothing(
    where: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = whole.read_bytes().splitlines(keepends=True)
    damaged = join(lines, {2: b"x\n"})
    whole.write_bytes(damaged)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as crashing:
        crashing.setattr(where, crash)
        with pytest.raises(KeyboardInterrupt):
            SampleFile(whole)
    assert whole.read_bytes() == damaged
    assert SampleFile(whole).done == {UNITS[0][0]["id"], UNITS[2][0]["id"]}
    assert whole.read_bytes() == b"".join([lines[0], *lines[4:]])
    assert [p.name for p in whole.parent.iterdir()] == [whole.name]


def test_units_of_nobody_stay_where_they_are(whole: Path) -> None:
    """A file may hold more units than a run with a limit asks for."""
    text = whole.read_bytes()
    file = SampleFile(whole)
    file.sort([UNITS[1][0]["id"]])
    lines = text.splitlines(keepends=True)
    assert whole.read_bytes() == b"".join([*lines[1:4], lines[0], *lines[4:]])
    file.sort([])
    file.sort([rows[0]["id"] for rows in UNITS])
    assert whole.read_bytes() == text


def test_a_long_file_is_read_in_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    line = '{{"id": "u{}", "score": 0.5, "layer": {}, "rows": 2}}\n'
    path.write_text("".join(line.format(i, k) for i in range(30_000) for k in range(2)) + "x\ny\n")
    start = time.monotonic()
    assert len(SampleFile(path).done) == 30_000
    assert time.monotonic() - start < 60  # quadratic: hours


@pytest.mark.parametrize("rows", [[], [{"id": "a"}, {"id": "b"}]])
def test_only_whole_units_are_appended(tmp_path: Path, rows: list[Line]) -> None:
    with pytest.raises(ValueError, match="rows of one unit"):
        SampleFile(tmp_path / "t.jsonl").append(rows)


def test_what_json_cannot_hold_leaves_the_file_alone(whole: Path) -> None:
    text, file = whole.read_bytes(), SampleFile(whole)
    with pytest.raises(ValueError, match="JSON"):
        file.append([{"id": "d", "score": 0.5}, {"id": "d", "score": float("nan")}])
    assert whole.read_bytes() == text and len(list(file.lines)) == 7


def test_lines_are_plain_json(whole: Path) -> None:
    assert all(json.loads(line)["id"] for line in whole.read_text(encoding="ascii").splitlines())
