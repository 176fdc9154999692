"""Forms in which people have training data: each becomes the same conversation, or says why not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from training_rows import ANSWER, ASKED, FROM, LLAVA, PARTS, PROMPT, encoded, said, spoken

from kvfix.data.training.conversation import Message
from kvfix.data.training.dataset import Conversations, read_conversations
from kvfix.data.units import BadUnit


def write(folder: Path, *rows: Any, name: str = "train.jsonl", as_list: bool = False) -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text(f"[{', '.join(lines)}]" if as_list else "".join(f"{x}\n" for x in lines))
    return path


def read(folder: Path, *rows: Any, **more: Any) -> Conversations:
    return read_conversations(write(folder, *rows), **more)


def url(k: int = 0) -> str:
    return f"data:image/png;base64,{base64.b64encode(encoded(k)).decode()}"


SHAREGPT = {
    "images": ["p/0.jpg"],
    "conversations": spoken(("human", ASKED), ("gpt", ANSWER), keys=FROM),
}
MESSAGES = {"messages": spoken(("user", ASKED), ("assistant", ANSWER)), "images": ["p/0.jpg"]}
QUERY = {"query": ASKED, "response": ANSWER, "images": ["p/0.jpg"]}
PAIRS = {"conversation": [{"human": ASKED, "assistant": ANSWER}], "images": "p/0.jpg"}
OWN = {"id": "a", **MESSAGES}
BOTH = "LLaMA-Factory and ms-swift"


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (OWN, "kvfix"),
        (LLAVA, "LLaVA"),
        (SHAREGPT, BOTH),
        (MESSAGES, BOTH),
        (QUERY, "ms-swift query and response"),
        (PAIRS, "ms-swift query and response"),
        (PARTS, "TRL"),
        (PROMPT, "TRL"),
    ],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_every_form_becomes_the_same_conversation(folder, row, form, as_list) -> None:
    data = read_conversations(write(folder, row, row, as_list=as_list))
    assert data.forms == ((form, 2),) and not data.bad
    for conversation in data:
        content = conversation.messages[0].content.replace("\n", "")
        assert (content, said(conversation)[1:]) == (ASKED, [("assistant", ANSWER)])
        assert [photo.read().image.size for photo in conversation.photos] == [(32, 24)]
        assert conversation.messages[1].learned


def test_a_file_may_mix_forms_and_lacks_what_is_none(folder) -> None:
    rows = [OWN, LLAVA, SHAREGPT, MESSAGES, QUERY, PARTS, PROMPT]
    data = read(folder, *(row | {"masks2": None, "note": None} for row in rows))
    assert len(data) == 7 and sum(n for _, n in data.forms) == 7 and len(data.forms) == 5
    assert not any("note" in note for note in data.notes)  # an empty cell of a table


def test_ids_are_optional_repeated_or_numbers(folder) -> None:
    rows = [MESSAGES, OWN, OWN, OWN | {"id": 5}, OWN | {"id": ""}, LLAVA, LLAVA]
    data = read(folder, *rows)
    assert data.ids == ("#1", "a", "a#3", "5", "#5", "7", "7#7")
    assert [c.id for c in data] == list(data.ids)
    assert any("2 ids are repeated" in note for note in data.notes)


def test_unknown_columns_are_named_once_and_ignored(folder) -> None:
    row = OWN | {"source": "coco", "width": 120, "mask": []}
    odd = {"messages": [{**m, "name": "x"} for m in MESSAGES["messages"]], "images": ["p/0.jpg"]}
    data = read(folder, row, row, odd)
    [note] = [note for note in data.notes if note.startswith("ignored")]
    assert note == "ignored: mask, messages.name, source, width (first in line 1)"
    assert len(data) == 3


def test_system_turns_stay(folder) -> None:
    turns = [{"role": "system", "content": "Be a doctor."}, *MESSAGES["messages"]]
    in_front = MESSAGES | {"messages": turns}
    beside = [row | {"system": "Be a doctor."} for row in (SHAREGPT, MESSAGES, QUERY, LLAVA)]
    for conversation in read(folder, in_front, *beside):
        assert said(conversation)[0] == ("system", "Be a doctor.")
    empty = MESSAGES | {"messages": [{"role": "system", "content": ""}, *MESSAGES["messages"]]}
    assert [m.role for m in read(folder, empty)[0].messages] == ["user", "assistant"]


def test_images_without_a_mark_stand_first_and_that_is_said(folder) -> None:
    """As ms-swift does; LLaVA's scripts would train without the image."""
    turns = spoken(("human", "What is this?"), ("gpt", ANSWER), keys=FROM)
    two = {"image": ["p/0.jpg", "p/1.jpg"], "conversations": turns}
    data = read(folder, two, LLAVA)
    assert said(data[0])[0] == ("user", "<image><image>\nWhat is this?")
    assert [note for note in data.notes if "(1 of 2)" in note and "first question" in note]


def test_several_images_stay_where_they_stand(folder) -> None:
    turns = spoken(("human", "Is <image> like <image>?"), ("gpt", "No."), keys=FROM)
    later = spoken(
        ("human", "Hello."), ("gpt", "Hi."), ("human", "What is <image>"), ("gpt", "A."), keys=FROM
    )
    two, late = read(
        folder,
        {"image": ["p/1.jpg", "p/0.jpg"], "conversations": turns},
        {"image": "p/1.jpg", "conversations": later},
    )
    assert [photo.name for photo in two.photos] == ["1.jpg", "0.jpg"]
    assert said(two)[0][1] == "Is <image> like <image>?"
    assert said(late)[2] == ("user", "What is <image>")


def test_text_alone_needs_no_image(folder) -> None:
    turns = spoken(("human", "Say yes."), ("gpt", "Yes."), keys=FROM)
    for row in ({"conversations": turns} | more for more in ({}, {"image": None}, {"image": ""})):
        assert len(read(folder, row)[0].photos) == 0


def test_history_comes_before_the_query(folder) -> None:
    row = QUERY | {"history": [["Hello.", "Hi."], ["And?", "So."]]}
    assert said(read(folder, row)[0]) == [
        ("user", "Hello."),
        ("assistant", "Hi."),
        ("user", "And?"),
        ("assistant", "So."),
        ("user", ASKED),
        ("assistant", ANSWER),
    ]


def test_answers_that_say_loss_false_are_not_learned(folder) -> None:
    turns = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": "A cow.", "loss": False},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": ANSWER, "loss": True},
    ]
    weighted = [{**t, "loss": None, "weight": int(t.get("loss", 1))} for t in turns]
    first, second, prompted = read(
        folder,
        MESSAGES | {"messages": turns},
        MESSAGES | {"messages": weighted},
        {"prompt": turns[:3], "completion": turns[3:], "images": ["p/0.jpg"]},
    )
    for conversation in (first, second, prompted):
        assert [m.learned for m in conversation.messages if m.role == "assistant"] == [False, True]


def test_of_a_prompt_nothing_is_learned(folder) -> None:
    prompt = spoken(("user", ASKED), ("assistant", "A cow."), ("user", "Sure?"))
    [got] = read(folder, PROMPT | {"prompt": prompt})
    assert [m.learned for m in got.messages if m.role == "assistant"] == [False, True]
    [plain] = read(folder, {"prompt": "Hm?", "completion": "Yes."})
    assert plain.messages == (Message("user", "Hm?"), Message("assistant", "Yes."))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "p/1.jpg"},
        {"type": "image", "path": "p/1.jpg"},
        {"type": "image", "url": url(1)},
        {"type": "image", "image": url(1)},
        {"type": "image", "image": base64.b64encode(encoded(1)).decode()},
        {"type": "image", "image": {"bytes": base64.b64encode(encoded(1)).decode()}},
        {"type": "image", "image": {"bytes": None, "path": "p/1.jpg"}},
        {"type": "image_url", "image_url": {"url": url(1)}},
        {"type": "image", "image": "FILE"},
        {"type": "image", "image": "file://FILE"},
    ],
)
def test_a_part_may_hold_its_image(folder, part) -> None:
    there = str(folder / "p" / "1.jpg")
    part = json.loads(json.dumps(part).replace("FILE", there))
    turns = spoken(("user", [{"type": "text", "text": "What?"}, part]), ("assistant", ANSWER))
    [got] = read(folder, {"messages": turns})
    assert said(got)[0] == ("user", "What?<image>")
    [image] = (photo.read().image for photo in got.photos)
    assert image.mode == "RGB" and image.size == (32, 24)


def test_parts_may_number_their_images(folder) -> None:
    parts = [{"type": "image", "index": 1}, {"type": "text", "text": "or"}]
    turns = spoken(("user", [*parts, {"type": "image", "index": 0}]), ("assistant", ANSWER))
    [got] = read(folder, {"messages": turns, "images": ["p/0.jpg", "p/1.jpg"]})
    assert [photo.name for photo in got.photos] == ["1.jpg", "0.jpg"]


@pytest.mark.parametrize("cell", ["p/0.jpg", {"path": "p/0.jpg"}, {"bytes": "B"}, ["p/0.jpg"]])
def test_images_are_names_or_objects_alone_or_listed(folder, cell) -> None:
    cell = json.loads(json.dumps(cell).replace('"B"', json.dumps(url())))
    assert read(folder, MESSAGES | {"images": cell})[0].photos[0].read().image.size == (32, 24)


def test_absolute_names_are_taken_and_looked_for_below_the_folder(folder) -> None:
    there = str(folder / "p" / "0.jpg")
    away = "/data/x/p/0.jpg"  # of another machine
    data = read(folder, *(MESSAGES | {"images": [name]} for name in (there, away)))
    assert [c.photos[0].source for c in data] == [folder / "p" / "0.jpg"] * 2
    [note] = data.notes
    assert note == f"images of /data/x, which is not on this machine, are taken from {folder}"
    rows = [MESSAGES] * 30 + [MESSAGES | {"images": [away]}, MESSAGES | {"images": ["/y/p/0.jpg"]}]
    [bad] = read(folder, *rows).bad  # one place for all of them: nothing is guessed twice
    assert bad.number == 32 and "/y/p/0.jpg: expected a photo, found no such file" in bad.why


TOOL = [{"role": "tool", "content": "3"}]
CALL = [{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}]
HTTP = {"images": ["https://example.com/1.jpg"]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "Do.", "input": "", "output": "Done."}, ["alpaca", "message of the user"]),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ["preference pair", "chosen"]),
        ({"texts": [], "images": []}, ["keys images, texts", "as messages"]),
        ({"question": "?", "choices": ["a"], "answer": "A"}, ["kvfix eval --data mcq=FILE"]),
        ({"a": 1, "b": 2}, ["messages (of role and content)", "the keys a, b"]),
        ({}, ["the keys none"]),
        (MESSAGES | {"messages": MESSAGES["messages"] + TOOL}, ["'tool'", "not trained"]),
        (SHAREGPT | {"conversations": spoken(("observation", "3"), keys=FROM)}, ["'observation'"]),
        (LLAVA | {"conversations": spoken(("function_call", "3"), keys=FROM)}, ["function_call"]),
        (MESSAGES | {"messages": MESSAGES["messages"][:1] + CALL}, ["without tool_calls"]),
        (MESSAGES | {"tools": [{"name": "f"}]}, ["without tools"]),
        (MESSAGES | {"videos": ["a.mp4"]}, ["images and text", "videos"]),
        (MESSAGES | {"rejected_response": "No."}, ["one answer", "rejected_response"]),
        (MESSAGES | {"label": False}, ["label false"]),
        (MESSAGES | HTTP, ["on this machine", "nothing from a network", "example.com"]),
        (MESSAGES | {"images": ["s3://b/1.jpg"]}, ["on this machine"]),
        (MESSAGES | {"images": ["p/../p/0.jpg"]}, ["below the folder"]),
        (MESSAGES | {"images": ["/p/../p/0.jpg"]}, ["below the folder"]),
        (MESSAGES | {"images": ["n" * 300 + ".jpg"]}, ["304 characters"]),
        (MESSAGES | {"images": ["n/" * 3000]}, ["6,000 characters"]),
        (MESSAGES | {"images": ["\udcff.jpg"]}, ["no such file"]),
        (MESSAGES | {"images": ["p\0.jpg"]}, ["below the folder"]),
        (MESSAGES | {"images": ["data:image/png;base64,?"]}, ["base64"]),
        (MESSAGES | {"images": [{"size": 3}]}, ["path or bytes", "size"]),
        (MESSAGES | {"images": ["p/0.jpg"] * 2}, ["each of 2 images", "found 1"]),
        (MESSAGES | {"images": []}, ["each of 0 images", "found 1"]),
        (PARTS | {"images": []}, ["each of 0 images", "found 1"]),
        (MESSAGES | {"messages": spoken(("user", ASKED), ("assistant", ""))}, ["empty one of"]),
        (
            MESSAGES | {"messages": spoken(("user", ""), ("assistant", "a")), "images": []},
            ["empty"],
        ),
        (
            MESSAGES | {"messages": spoken(("user", ASKED), ("system", "a"))},
            ["system", "the start"],
        ),
        (
            MESSAGES | {"messages": [*MESSAGES["messages"], {"role": "assistant", "content": "b"}]},
            ["after another one"],
        ),
        (
            MESSAGES
            | {"objects": {"bbox": [[1, 2, 3, 4]]}, "query": 1}
            | {"messages": spoken(("user", ASKED), ("assistant", "<bbox>"))},
            ["without <bbox> and <ref-object>"],
        ),
        (
            MESSAGES
            | {"messages": [MESSAGES["messages"][0], MESSAGES["messages"][1] | {"loss": False}]},
            ["an answer to train on", "loss false"],
        ),
        (
            MESSAGES
            | {"messages": [MESSAGES["messages"][0], MESSAGES["messages"][1] | {"loss": 0.5}]},
            ["true or false", "0.5"],
        ),
        (
            MESSAGES
            | {"messages": [MESSAGES["messages"][0], MESSAGES["messages"][1] | {"thinking": "Hm"}]},
            ["whole answer in its content", "thinking"],
        ),
        (
            PARTS | {"messages": spoken(("user", [{"type": "video", "video": "a.mp4"}]))},
            ["type text or image", "'video'"],
        ),
        (
            PARTS | {"messages": spoken(("user", [{"type": "image", "index": 3}]), ("bot", "a"))},
            ["index below 1", "[3]"],
        ),
        (QUERY | {"history": ["a"]}, ["pairs [query, response]", "'a'"]),
        (PAIRS | {"conversation": [{"human": "a"}]}, ["human and assistant"]),
    ],
)
def test_what_is_refused_is_listed_with_its_cause(folder, row, words) -> None:
    rows = [MESSAGES] * 19
    for as_list in (False, True):
        path = write(folder, *rows, row, as_list=as_list)
        data = read_conversations(path)
        [bad] = data.bad
        assert len(data) == 19 and bad.number == 20 and "expected" in bad.why
        assert str(bad).startswith("entry 20: " if as_list else "line 20: ")
        assert all(word in bad.why for word in words), bad.why
        assert len(bad.why) < 500


def test_grounding_columns_that_change_no_text_are_ignored(folder) -> None:
    row = MESSAGES | {"objects": {"ref": ["cow"], "bbox": [[1, 2, 3, 4]]}}
    data = read(folder, row)
    assert len(data) == 1 and data.notes == ("ignored: objects (first in line 1)",)


def test_a_list_that_is_cut_off_or_goes_on_is_refused(folder) -> None:
    path = write(folder, *[MESSAGES] * 3, as_list=True)
    whole = path.read_text()
    for text, says in (
        (whole[:-1], "the file is cut off"),
        (whole[:-30], "the file is cut off"),
        (whole + "[]", "found more behind its end"),
        ('["' + '\\"' * 50_000, "the file is cut off"),  # linear: no second look at any quote
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_conversations(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="an empty file"):
        read_conversations(path)


def test_elements_of_a_list_are_found_by_brackets_outside_of_texts(folder) -> None:
    row = MESSAGES | {"note": 'a ] } , [ { " \\" \\\\', "deep": [[[{}], []], {"a": [1, 2]}]}
    path = write(folder, row, row, name="train.json", as_list=True)
    path.write_text("\ufeff" + json.dumps(json.loads(path.read_text()), indent=1) + "\n")
    assert len(read_conversations(path)) == 2
    broken = [MESSAGES] * 19 + ["{bad}"]
    data = read_conversations(write(folder, *broken, as_list=True))
    assert len(data) == 19 and data.bad[0].number == 20 and "broken text" in data.bad[0].why


def test_a_changed_list_is_noticed(folder) -> None:
    path = write(folder, OWN, OWN | {"id": "b"}, as_list=True)
    data = read_conversations(path)
    path.write_text(path.read_text().replace('"a"', '"abc"'))
    with pytest.raises(BadUnit, match=r"entry 2: .*the file was changed"):
        data[1]
