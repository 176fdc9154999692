"""Training conversations: what a line may say, lazy access, and how bad lines are reported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
from places import SHARED
from pycocotools import mask as coco

from kvfix.data.pictures import read as pictures
from kvfix.data.training.conversation import Match, Message
from kvfix.data.training.dataset import read_conversations
from kvfix.data.units import BadUnit

DATA = SHARED / "data"


def _region() -> np.ndarray:
    out = np.zeros((trees.HEIGHT, trees.WIDTH), np.uint8)
    out[3:9, 5:20] = 1
    out[15, 0] = 1
    return out


def _rle(mask_HW: np.ndarray, **more: object) -> dict:
    got = coco.encode(np.asfortranarray(mask_HW))
    return {
        "image": 0,
        "label": "cow",
        "size": got["size"],
        "counts": got["counts"].decode(),
        **more,
    }


def _turns(question: str, answer: str = "yes") -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _row(name: str, **more: Any) -> dict:
    return {"id": name, "images": ["p/0.jpg"], "messages": _turns("<image>\nA cow?"), **more}


def _good() -> list[dict]:
    match = {"image_a": 0, "image_b": 1, "a": [3.5, 4], "b": [31, 23]}
    system = {"role": "system", "content": "Be brief."}
    return [
        _row("plain", sub_task="Counting"),
        _row("mask", masks=[_rle(_region()), _rle(1 - _region(), label="ground")]),
        _row(
            "points",
            images=["p/0.jpg", "p/1.jpg"],
            messages=[system, *_turns("<image>"), *_turns("<image> Grüße?", "ja ☃")],
            points=[match],
        ),
        {"id": "text", "messages": _turns("No photo?")},
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(2):
        trees.photo(tmp_path / f"p/{k}.jpg", 10 * k)
    return tmp_path


def _write(folder: Path, rows: list, *, end: str = "\n") -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    path = folder / "train.jsonl"
    path.write_text(end.join(lines) + end, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_every_kind_of_line_is_read(folder: Path, end: str) -> None:
    data = read_conversations(_write(folder, _good(), end=end))
    assert len(data) == 4 and data.bad == () and data.ids == ("plain", "mask", "points", "text")
    plain, mask, points, text = data
    assert plain.sub_task == "Counting" and plain.masks == plain.points == ()
    assert plain.messages == (Message("user", "<image>\nA cow?"), Message("assistant", "yes"))
    image = plain.photos[0].read().image
    assert image.mode == "RGB" and image.size == (32, 24)
    assert [m.label for m in mask.masks] == ["cow", "ground"]
    decoded = [m.decode() for m in mask.masks]
    assert decoded[0].dtype == np.uint8 and (decoded[0] == _region()).all()
    assert (decoded[1] == 1 - _region()).all()
    assert points.points == (Match(0, 1, (3.5, 4.0), (31.0, 23.0)),)
    assert abs(np.asarray(points.photos[1].read().image).mean() - 30) < 2
    assert [m.role for m in points.messages] == ["system", *["user", "assistant"] * 2]
    assert points.messages[-1].content == "ja ☃"
    assert len(text.photos) == 0
    assert data[-1] == text and [c.id for c in data[1:3]] == ["mask", "points"]
    with pytest.raises(IndexError):
        data[4]
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.id = "x"  # type: ignore[misc]


def test_a_byte_order_mark_is_no_error(folder: Path) -> None:
    path = _write(folder, _good())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [c.id for c in read_conversations(path)] == ["plain", "mask", "points", "text"]


def test_run_lengths_may_be_plain_numbers(folder: Path) -> None:
    flat = _region().ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    data = read_conversations(_write(folder, [_row("a", masks=[_rle(_region(), counts=counts)])]))
    assert (data[0].masks[0].decode() == _region()).all()


def test_photos_are_decoded_on_access_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = pictures.read_picture

    def watched(source: Path, **more: Any) -> pictures.Picture:
        opened.append(source.name)
        return real(source, **more)

    monkeypatch.setattr("kvfix.data.training.photos.read_picture", watched)
    row = read_conversations(_write(folder, _good()))[2]
    assert opened == []
    assert row.photos[1].read().image.size == (32, 24) and opened == ["1.jpg"]


def test_photos_may_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = _write(tmp_path_factory.mktemp("elsewhere"), _good())
    assert len(read_conversations(path, images=folder)) == 4
    with pytest.raises(ValueError, match=r"line 1: .*0\.jpg: expected a photo, found no such file"):
        read_conversations(path)


_OTHER_SIZE = _rle(np.ones((4, 5), np.uint8))
_POINT = {"image_a": 0, "image_b": 0, "a": [0, 0], "b": [1, 1]}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", ["JSON object", "broken text"]),
        ("[" * 100_000, ["JSON object", "broken text"]),
        ("[1]", ["JSON object", "[1]"]),
        (_row("x", images=[1]), ["images, file names", "found 1"]),
        (_row("x", images=["/p/9.jpg"]), ["/p/9.jpg", "no such file"]),
        (_row("x", images=["p/../../0.jpg"]), ["below the folder"]),
        (_row("x", images=["p/9.jpg"]), ["9.jpg", "no such file"]),
        (_row("x", images=[]), ["<image> for each of 0 images", "found 1"]),
        (_row("x", images=["p/0.jpg", "p/1.jpg"]), ["each of 2 images", "found 1"]),
        (_row("x", messages=None), ["messages (of role and content)", "the keys id, images"]),
        (_row("x", messages=3), ["messages, a list", "3"]),
        (_row(["x"]), ["id, a text", "['x']"]),
        (_row("x", messages=[{"role": "critic", "content": "a"}]), ["role of system", "'critic'"]),
        (_row("x", messages=[]), ["end with the assistant's", "none"]),
        (_row("x", messages=_turns("<image>")[:1]), ["end with the assistant's", "user"]),
        (_row("x", messages=_turns("<image>")[1:]), ["a message of the user"]),
        (_row("x", messages=_turns("<image>", " ")), ["content, a text", "empty one of assistant"]),
        (_row("x", messages=_turns("a", "<image>")), ["user's messages only"]),
        (_row("x", messages=[{"role": "user", "content": [{}]}]), ["type text or image", "{}"]),
        (_row("x", sub_task=3), ["sub_task", "3"]),
        (_row("x", masks={}), ["masks, a list"]),
        (_row("x", masks=[{"size": [24, 32]}]), ["masks as objects of counts, image, label"]),
        (_row("x", masks=[_rle(_region(), image=1)]), ["index below 1", "found 1"]),
        (_row("x", masks=[_rle(_region(), image=True)]), ["index below 1", "True"]),
        (_row("x", masks=[_rle(_region(), size=[32, 24, 1])]), ["size [height, width]"]),
        (_row("x", masks=[_rle(_region(), size=[24, 33])]), ["24 x 33 = 792", "found 768"]),
        (_row("x", masks=[_rle(_region(), counts="")]), ["24 x 32 = 768", "found 0"]),
        (_row("x", masks=[_rle(_region(), counts="é")]), ["run-length text", "'é'"]),
        (_row("x", masks=[_rle(_region(), counts="P")]), ["cut off"]),
        (_row("x", masks=[_rle(_region(), counts="o" * 99)]), ["run-length text"]),
        (_row("x", masks=[_rle(_region(), counts=[800, -32])]), ["0 or more", "-32"]),
        (_row("x", masks=[_rle(_region(), counts=[768.0])]), ["whole numbers"]),
        (_row("x", masks=[_rle(_region(), counts=5)]), ["counts, COCO run lengths"]),
        (_row("x", masks=[_rle(_region(), size=[32, 24])]), ["[24, 32] of 0.jpg", "[32, 24]"]),
        (_row("x", masks=[_OTHER_SIZE]), ["size [24, 32] of 0.jpg", "found [4, 5]"]),
        (_row("x", points=[{**_POINT, "a": [1]}]), ["[x, y]", "found [1]"]),
        (_row("x", points=[{**_POINT, "a": [1, True]}]), ["[x, y]"]),
        (_row("x", points=[{**_POINT, "b": [1, 10**400]}]), ["[x, y]"]),
        (_row("x", points=[{**_POINT, "b": [float("nan"), 1]}]), ["[x, y]", "nan"]),
        (_row("x", points=[{**_POINT, "b": [31.6, 1]}]), ["32 x 24 pixels of 0.jpg", "31.6, 1"]),
        (_row("x", points=[{**_POINT, "image_b": 1}]), ["points' image_b", "found 1"]),
    ],
)
def test_a_bad_line_is_listed_and_the_others_stay(folder: Path, bad: Any, words: list[str]) -> None:
    rows = [_row("plain"), bad, *(_row(f"r{i}") for i in range(18))]
    data = read_conversations(_write(folder, rows))
    assert len(data) == 19 and data[1].id == "r0" and data[18].id == "r17"
    (line,) = data.bad
    assert line.number == 2 and str(line).startswith("line 2: ") and "expected" in line.why
    assert all(word in line.why for word in words) and len(line.why) < 400


def test_more_than_one_in_twenty_is_an_error(folder: Path) -> None:
    rows: list = [_row(f"r{i}") for i in range(19)]
    assert len(read_conversations(_write(folder, [*rows, "{"])).bad) == 1  # 1 of 20
    with pytest.raises(ValueError, match=r"at most 5% bad lines, found 1 of 19: line 19: expected"):
        read_conversations(_write(folder, [*rows[:18], "{"]))
    with pytest.raises(ValueError, match=r"found 7 of 7: line 1: .*line 5: .*; and 2 more$"):
        read_conversations(_write(folder, ["{"] * 7))


def test_missing_and_empty_files_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="empty file"):
        read_conversations(_write(folder, [""]))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_conversations(folder / "no.jsonl")
    with pytest.raises(ValueError, match=r"save_to_disk wrote, .* found 0 JSON files"):
        read_conversations(folder / "p")
    (folder / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="found 2 JSON files; name one of them"):
        read_conversations(folder)


def test_a_file_changed_meanwhile_is_noticed(folder: Path) -> None:
    path = _write(folder, _good())
    data = read_conversations(path)
    path.write_text("x" + path.read_text())
    with pytest.raises(BadUnit, match="the file was changed"):
        data[1]
    _write(folder, [_row("other"), *_good()[1:]])
    with pytest.raises(BadUnit, match="expected the line of plain, found other"):
        data[0]


def test_a_photo_gone_meanwhile_is_a_bad_unit(folder: Path) -> None:
    row = read_conversations(_write(folder, _good()))[0]
    (folder / "p/0.jpg").unlink()
    with pytest.raises(BadUnit, match=r"0\.jpg: expected a photo, found no such file"):
        row.photos[0].read()


@pytest.mark.shared
def test_real_lines() -> None:
    path = DATA / "train/train.jsonl"
    data = read_conversations(path)
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(data) == len(raw) == 827 and data.bad == ()
    masks = 0
    for conversation, row in zip(data, raw, strict=True):
        assert (conversation.id, conversation.sub_task) == (row["id"], row["sub_task"])
        found = [{"role": m.role, "content": m.content} for m in conversation.messages]
        assert found == row["messages"]
        assert len(conversation.points) == len(row.get("points", []))
        for mask, fields in zip(conversation.masks, row.get("masks", []), strict=True):
            masks += 1
            expected = coco.decode({"size": fields["size"], "counts": fields["counts"]})
            assert (mask.decode() == expected).all()
            assert expected.shape[::-1] == conversation.photos[mask.image].read().image.size
    assert masks == sum(len(r.get("masks", [])) for r in raw) == 746
