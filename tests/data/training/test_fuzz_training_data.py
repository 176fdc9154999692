"""Training files of all forms with anything in them: every record is read or listed, in time."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfix.data.training.dataset import read_conversations
from kvfix.data.training.examples import from_conversation
from kvfix.data.training.verify import verify

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
ODD = (
    *("<image>", "<image>" * 3, "../0.png", "/0.png", "http://x/0.png", "file://0.png", "data:,"),
    *("user", "assistant", "system", "tool", "text", "image", "n" * 300, "\ud800", "no.png", "\0"),
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<image>What?"},
    {"role": "assistant", "content": "A cow.", "loss": True},
]
FROM = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cow."}]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cow."}]},
]
INLINE = [{"role": "user", "content": [{"type": "image", "image": f"data:image/png;base64,{PNG}"}]}]
MASK = {"image": 0, "label": "cow", "size": [60, 100], "counts": [6000]}
POINT = {"image_a": 0, "image_b": 0, "a": [1, 2], "b": [3.5, 4]}
ROWS: list[dict[str, Any]] = [
    {"id": "a", "images": ["0.png"], "messages": TURNS, "masks": [MASK], "points": [POINT]},
    {"id": 7, "image": "0.png", "conversations": FROM, "source": "x"},
    {"images": ["0.png"], "conversations": FROM, "system": "Hm."},
    {"images": [{"path": "0.png"}], "messages": TURNS, "objects": {"bbox": []}},
    {"query": "<image>What?", "response": "A cow.", "history": [["a", "b"]], "images": "0.png"},
    {"conversation": [{"human": "Hm?", "assistant": "So."}]},
    {"images": [PNG], "messages": PARTS},
    {"messages": [*INLINE, PARTS[1]]},
    {"prompt": PARTS[:1], "completion": PARTS[1:], "images": ["0.png"]},
]
texts = st.text(max_size=20) | st.sampled_from([*ODD, PNG])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, way: tuple = ()) -> list[tuple]:
    """Ways to everything within a record."""
    found = [way] if way else []
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(item, (*way, key))
    return found


@st.composite
def records(draw: st.DrawFn) -> Any:
    """A record of some form with parts put elsewhere, taken away, or turned into anything."""
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(0, 3))):
        ways = places(row)
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        at: Any = row
        for key in way:
            at = at[key]
        kind = draw(st.sampled_from(["any", "gone", "double", "other"]))
        if kind == "any":
            at[last] = draw(values)
        elif kind == "gone":
            del at[last]
        elif kind == "double":
            at[last] = [at[last], at[last]]
        else:
            at[last] = copy.deepcopy(
                draw(st.sampled_from(list(draw(st.sampled_from(ROWS)).values())))
            )
    return row


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line of a file; some are cut, or have bytes that are no text."""
    raw = json.dumps(draw(records() | values)).encode("utf-8", "surrogatepass")
    cut = draw(st.sampled_from([None] * 6 + ["cut", "byte"]))
    if cut and raw:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + (b"" if cut == "cut" else bytes([draw(st.integers(128, 255))]) + raw[at:])
    return raw.replace(b"\n", b" ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    tiny.photo(60, 100).save(folder / "0.png")
    return folder


@settings(max_examples=max(200, settings().max_examples))
@given(raw=lines(), as_list=st.booleans())
def test_every_line_is_read_or_listed(folder: Path, raw: bytes, as_list: bool) -> None:
    good = json.dumps(ROWS[0]).encode()
    path = folder / "train.jsonl"
    path.write_bytes(b"[" + good + b"," + raw + b"]" if as_list else good + b"\n" + raw + b"\n")
    try:
        data = read_conversations(path, most_bad=1.0)
    except ValueError as error:  # a list whose brackets are broken has no elements to tell apart
        assert as_list and "expected one JSON list" in str(error)
        return
    written = 1 + bool(raw.strip())
    if not as_list:
        assert len(data) + len(data.bad) == written
    assert data.ids[0] == "a" and all("expected" in line.why for line in data.bad)
    assert all(len(str(line)) < 1000 for line in data.bad)
    bad = verify(data, threads=1)
    for conversation in data.without(bad, most_bad=1.0):
        example = from_conversation(conversation)
        asked = sum(part is None for turn in example.turns for part in turn.user)
        assert asked == len(example.images) and example.turns[-1].answer.strip()
        assert all(turn.answer for turn in example.turns)
