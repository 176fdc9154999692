"""`kvfix data check train=FILE`: what is bad, of which form the rest is, and the first example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import call

ASKED = {"role": "user", "content": "<image>What is it?"}
ANSWERED = {"role": "assistant", "content": "A cow."}
OWN = {"id": "a", "messages": [ASKED, ANSWERED], "images": ["0.png"]}
LLAVA = {
    "image": "0.png",
    "conversations": [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "So."}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.photo(60, 100).save(tmp_path / "0.png")
    return tmp_path


def write(folder: Path, *rows: Any) -> str:
    path = folder / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return f"train={path}"


def test_good_data_is_shown_and_counted_by_form(folder) -> None:
    ended = call("data", "check", write(folder, OWN, OWN | {"id": "b", "source": "x"}, LLAVA))
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "3 lines, 2 of form kvfix, 1 of form LLaVA; all can be trained on" in said
    assert "note ignored: source (first in line 2)" in said
    assert (
        "note images without <image> in the text stand before the first question (1 of 3)" in said
    )
    assert "user: <image>What is it? assistant: A cow. image 1: 0.png, 100 x 60" in said


def test_bad_lines_are_listed_with_number_and_cause(folder) -> None:
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:100])
    cut = OWN | {"images": ["cut.png"]}
    rows = [OWN | {"id": str(i)} for i in range(60)]
    ended = call("data", "check", write(folder, *rows, cut, {"a": 1}))
    assert ended.code == 1
    lines = [line for line in ended.err.splitlines() if line.startswith("- line ")]
    assert len(lines) == 2 and "cut.png: expected a photo" in lines[0]
    assert lines[1].startswith("- line 62: expected messages (of role and content)")
    assert "training leaves 2 out" in ended.err
    ended = call("data", "check", write(folder, *rows[:3], *[cut] * 60))
    assert ended.code == 1 and "... and 10 more" in ended.err
    assert "60 bad, and training refuses more than 5%" in " ".join(ended.err.split())
    ended = call("data", "check", write(folder, {"a": 1}, {"b": 2}))
    assert ended.code == 1 and "2 lines, none read; 2 bad" in " ".join(ended.err.split())
    assert "as a reader" not in ended.err and "error:" not in ended.err


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_first_example_is_shown_as_the_model_sees_it(family, folder, checkpoint) -> None:
    model = checkpoint(family)
    (weights,) = model.glob("*.safetensors")
    system = {"role": "system", "content": "Be a \x1b[2J doctor."}
    context = ANSWERED | {"content": "A hen.", "loss": False}
    turns = [system, ASKED, context, {"role": "user", "content": "Sure?"}, ANSWERED]
    spec = write(folder, OWN | {"messages": turns})
    hidden = weights.rename(weights.with_suffix(".hidden"))  # nothing of it is read
    try:
        ended = call("data", "check", spec, "--model", model)
    finally:
        hidden.rename(weights)
    assert ended.code == 0, ended.err
    assert "<|im_start|>system\nBe a \ufffd[2J doctor.<|im_end|>" in ended.err
    assert "\x1b[2J" not in ended.err
    [count] = [x for x in ended.err.split("[") if x.split("]")[0].endswith(" image tokens")]
    assert int(count.split()[0]) > 10
    assert "image 1: 0.png, 100 x 60" in ended.err
    [line] = [line for line in ended.err.splitlines() if "trained on: " in line]
    assert line.endswith("trained on: 'A cow.'")


def test_a_model_finds_what_its_processor_refuses(folder, checkpoint) -> None:
    said = [ASKED | {"content": "<image>Is <|image_pad|> a word?"}, ANSWERED]
    spec = write(folder, OWN, OWN | {"id": "b", "messages": said})
    assert call("data", "check", spec).code == 0
    ended = call("data", "check", spec, "--model", checkpoint("qwen2_5_vl"))
    assert ended.code == 1
    [line] = [line for line in ended.err.splitlines() if line.startswith("- ")]
    assert line.startswith("- line 2: b: expected text without the placeholder '<|image_pad|>'")


def test_images_may_lie_elsewhere(folder, tmp_path_factory) -> None:
    spec = write(tmp_path_factory.mktemp("elsewhere"), OWN)
    assert "0.png: expected a photo, found no such file" in call("data", "check", spec).err
    assert call("data", "check", spec, "--images", folder).code == 0


def test_what_cannot_be_opened_is_one_line(tmp_path) -> None:
    for spec, says in (
        (f"train={tmp_path / 'no.json'}", "found no such file"),
        (f"train={tmp_path}", "found 0 JSON files"),
        ("train=", "training data, found none"),
    ):
        ended = call("data", "check", spec)
        assert ended.code == 1 and says in ended.error
    assert call("data", "check", "davis2017=x", "--model", "y").code == 2


def test_the_list_shows_the_forms() -> None:
    said = call("data", "list").err
    assert all(name in said for name in ("LLaVA", "LLaMA-Factory", "ms-swift", "TRL", "train="))
