"""A samples file after any damage: untouched units stay, the others are scored again, no hang."""

from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfix.runs.samples import Line, SampleFile


class Damage(NamedTuple):
    """Bytes from `start` on (in thousandths of the file) are replaced."""

    start: int
    length: int
    by: bytes

    def of(self, text: bytes) -> tuple[int, int]:
        """First byte and end of what is replaced."""
        first = len(text) * self.start // 1000
        return first, min(len(text), first + self.length)


NAMES = st.lists(st.text(max_size=6), min_size=1, max_size=6, unique=True)
ROWS = st.integers(1, 4)
JUNK = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"\n", b"\0" * 64, b"{", b'"', b"}\n", b'{"id": "", "rows": 1, "score": 0.5}\n']
    ),
)
DAMAGES = st.lists(
    st.builds(Damage, st.integers(0, 1000), st.integers(0, 300), JUNK), min_size=1, max_size=3
)


def rows_of(name: str, n: int) -> list[Line]:
    return [{"id": name, "layer": layer, "score": layer / 7} for layer in range(n)]


@given(NAMES, ROWS, DAMAGES)
def test_any_damage(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], n: int, damages: list[Damage]
) -> None:
    path = tmp_path_factory.mktemp("samples") / "t.jsonl"
    file = SampleFile(path)
    spans = {}
    for name in names:
        start = path.stat().st_size if path.exists() else 0
        file.append(rows_of(name, n))
        spans[name] = (start, path.stat().st_size)
    whole = path.read_bytes()
    damaged, hit = bytearray(whole), set()
    for first, end, by in sorted(((*d.of(whole), d.by) for d in damages), reverse=True):
        damaged[first:end] = by  # from the end, so that earlier places stay
        # A unit whose neighbour lost its line's end is hit too.
        hit |= {name for name, (a, b) in spans.items() if first <= b and end >= a}
    path.write_bytes(bytes(damaged))

    healed = SampleFile(path)
    lines = path.read_bytes().splitlines(keepends=True)
    found = [json.loads(line) for line in lines]
    counts = Counter(row["id"] for row in found)
    assert set(counts) == healed.done
    assert all(row["rows"] == counts[row["id"]] for row in found)  # whole units only
    for name in set(names) - hit - copies(damaged, names, n):
        assert name in healed.done
        mine = [{k: v for k, v in row.items() if k != "rows"} for row in found if row["id"] == name]
        assert mine == rows_of(name, n)
    content = path.read_bytes()
    assert SampleFile(path).done == healed.done and path.read_bytes() == content
    for name in names:
        if name not in healed.done:
            healed.append(rows_of(name, n))
    healed.sort(names)
    order = list(dict.fromkeys(row["id"] for row in healed.lines))
    assert [name for name in order if name in names] == names


def copies(text: bytes, names: list[str], n: int) -> set[str]:
    """Units whose lines stand elsewhere too: replaced bytes may be those of other units."""
    found = set()
    for name in names:
        lines = [json.dumps({**row, "rows": n}).encode() for row in rows_of(name, n)]
        if any(bytes(text).count(line) != 1 for line in lines) or name == "":
            found.add(name)
    return found


@given(st.binary(max_size=400))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("samples") / "t.jsonl"
    path.write_bytes(content)
    file = SampleFile(path)
    file.append(rows_of("new", 2))
    assert "new" in SampleFile(path).done
