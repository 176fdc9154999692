"""Processors as other versions and tools saved them: filled, or refused by field and file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import call
from transformers import AutoConfig

from kvfix.mlm.families import FAMILIES
from kvfix.mlm.load import Mlm, Prompt, load_mlm
from kvfix.mlm.processor import load_processor, processor_sha256

PROCESSOR, IMAGES = "processor_config.json", "preprocessor_config.json"
Copy = Callable[[str], Path]


@pytest.fixture
def copy(checkpoint, tmp_path: Path) -> Copy:
    """A copy of a tiny checkpoint that a test may spoil."""
    return lambda name: shutil.copytree(checkpoint(name), tmp_path / name)


def change(file: Path, *drop: str, **changes: Any) -> None:
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in fields.items() if k not in drop}))


def flat(folder: Path) -> Path:
    """Lay the files out as transformers 4 did: the image processor in a file of its own."""
    nested = json.loads((folder / PROCESSOR).read_text())
    nested.pop("video_processor", None)
    (folder / IMAGES).write_text(json.dumps(nested.pop("image_processor")))
    (folder / PROCESSOR).write_text(json.dumps(nested))
    return folder


def read(folder: Path, model: Path | None = None) -> Any:
    config = AutoConfig.from_pretrained(model or folder)
    return load_processor(folder, config, FAMILIES[config.model_type])


def inputs(mlm: Mlm) -> dict[str, torch.Tensor]:
    return mlm.encode([Prompt((tiny.photo(60, 100),), "a cat")]).inputs


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_every_field_that_the_config_determines_may_be_missing(name, checkpoint, copy) -> None:
    whole, folder = load_mlm(str(checkpoint(name))), flat(copy(name))
    for field in whole.family.fields(whole.config):
        file = folder / (IMAGES if field.name.startswith("image_processor.") else PROCESSOR)
        if field.only:
            change(file, field.name.rpartition(".")[2])
    filled = load_mlm(str(folder))
    assert filled.processor_sha256 == whole.processor_sha256
    expected, found = inputs(whole), inputs(filled)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_llava_without_a_processor_config_works(checkpoint, copy) -> None:
    folder = flat(copy("llava"))
    (folder / PROCESSOR).unlink()
    assert processor_sha256(read(folder)) == processor_sha256(read(checkpoint("llava")))


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision"])
def test_a_missing_size_is_the_towers(name, checkpoint, copy) -> None:
    folder = flat(copy(name))
    change(folder / IMAGES, "size", "crop_size")
    assert processor_sha256(read(folder)) == processor_sha256(read(checkpoint(name)))


WRONG = [
    ("llava", "patch_size", 14, 8),
    ("llava", "vision_feature_select_strategy", "full", "'default'"),
    ("llava", "num_additional_image_tokens", 0, 1),
    ("llava_siglip", "num_additional_image_tokens", 1, 0),
    ("llava_next", "num_additional_image_tokens", 0, 1),
    ("llava_next", "image_processor.image_grid_pinpoints", [[48, 96]], r"\[\[48, 48\]"),
    ("llava_onevision", "num_image_tokens", 729, 36),
    ("llava_onevision", "vision_aspect_ratio", "anyres_max_4", "'anyres_max_9'"),
    ("qwen2_5_vl", "image_processor.patch_size", 14, 4),
    ("qwen2_5_vl", "image_processor.merge_size", 1, 2),
    ("qwen2_5_vl", "image_processor.temporal_patch_size", 1, 2),
]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("name", "field", "found", "right"), WRONG)
def test_a_wrong_field_is_named_with_its_file(name, field, found, right, old, copy) -> None:
    folder = flat(copy(name)) if old else copy(name)
    *inside, key = field.split(".")
    file = folder / (IMAGES if old and inside else PROCESSOR)
    if inside and not old:
        change(file, image_processor=json.loads(file.read_text())["image_processor"] | {key: found})
    else:
        change(file, **{key: found})
    message = rf"{file.name}: expected {key} to be {right}.* in config.json makes it, found "
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llava", {"crop_size": {"height": 40, "width": 40}}),
        ("llava_siglip", {"size": {"height": 56, "width": 56}}),
        ("llava_next", {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}),
    ],
)
def test_pixels_that_the_tower_does_not_take_are_refused(name, changes, copy) -> None:
    folder = flat(copy(name))
    change(folder / IMAGES, **changes)
    with pytest.raises(ValueError, match=r"to make pixels of 48 x 48, .* mend size, crop_size in"):
        read(folder)


def test_what_no_rule_foresaw_fails_at_load_with_both_counts(copy, monkeypatch) -> None:
    folder = copy("llava_next")
    monkeypatch.setattr("kvfix.mlm.processor._settle", lambda *given: None)
    change(folder / PROCESSOR, num_additional_image_tokens=0)
    with pytest.raises(ValueError, match=r"puts \d+ image tokens where the model makes \d+ \(of a"):
        read(folder)


@pytest.mark.parametrize("kind", ["Qwen2_5_VLImageProcessor", "Qwen2_5_VLImageProcessorFast"])
def test_an_image_processor_whose_class_is_gone_is_read_by_the_models(kind, copy) -> None:
    folder = flat(copy("qwen2_5_vl"))
    whole = processor_sha256(read(folder))
    change(folder / IMAGES, image_processor_type=kind)
    assert processor_sha256(read(folder)) == whole


def test_old_spellings_are_read(checkpoint, copy) -> None:
    folder = flat(copy("llava"))
    change(folder / IMAGES, "processor_class", size=48, crop_size=48)
    change(folder / PROCESSOR, "processor_class")
    assert processor_sha256(read(folder)) == processor_sha256(read(checkpoint("llava")))


@pytest.mark.parametrize("where", ["chat_template.json", "tokenizer_config.json"])
def test_the_chat_template_is_found_wherever_it_was_kept(where, checkpoint, copy) -> None:
    folder = copy("llava")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if not (folder / where).exists():
        (folder / where).write_text("{}")
    change(folder / where, chat_template=template)
    assert processor_sha256(read(folder)) == processor_sha256(read(checkpoint("llava")))


def test_a_template_that_shows_no_image_is_refused(copy) -> None:
    folder = copy("llava")
    text = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(text)
    with pytest.raises(ValueError, match=r"expected a chat template that puts '<image>'"):
        read(folder)


def test_without_a_pad_token_the_end_token_pads(copy) -> None:
    folder = copy("llava")
    change(folder / "tokenizer_config.json", "pad_token")
    assert read(folder).tokenizer.pad_token == "<|im_end|>"
    change(folder / "tokenizer_config.json", "eos_token")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: expected pad_token or eos_token"):
        read(folder)


def test_an_image_token_of_another_id_is_refused(copy) -> None:
    folder = copy("llava")
    right = json.loads((folder / "config.json").read_text())["image_token_index"]
    change(folder / "config.json", image_token_index=right - 1)
    message = rf"image token '<image>' to have the id {right - 1} .*, found it at {right} and '<\|"
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_a_processor_of_another_family_is_refused(checkpoint, copy) -> None:
    folder = copy("llava")
    with pytest.raises(ValueError, match=r"processor_class LlavaNextProcessor .*'LlavaProcessor'"):
        read(folder, model=checkpoint("llava_next"))


def test_a_checkpoint_without_a_processor_says_from_where_to_take_one(copy) -> None:
    folder = copy("qwen2_5_vl")
    (folder / PROCESSOR).unlink()
    with pytest.raises(ValueError, match=r"found none, .*--processor ID\|DIR .*Qwen2.5-VL-7B-Inst"):
        load_mlm(str(folder))
    change(folder / "config.json", _name_or_path="me/my-qwen")
    with pytest.raises(ValueError, match=r"--processor ID\|DIR \(for instance me/my-qwen\)"):
        load_mlm(str(folder))


def test_another_folders_processor_is_taken_and_recorded(checkpoint, copy, tmp_path: Path) -> None:
    folder, whole = copy("qwen2_5_vl"), checkpoint("qwen2_5_vl")
    (folder / PROCESSOR).unlink()
    out, given = tmp_path / "run", ("--model", folder, "--processor", whole, "--limit", 1)
    ended = call("eval", *given, "--site", "value", "--out", out)
    assert ended.code == 0, ended.err
    run = json.loads((out / "run.json").read_text())
    assert run["model"]["processor"] == str(whole)
    assert run["model"]["processor_sha256"] == load_mlm(str(whole)).processor_sha256
    assert run["fingerprint"]["processor"] == run["model"]["processor_sha256"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: change(folder / IMAGES, image_mean=[0.1, 0.2, 0.3]),
        lambda folder: change(folder / IMAGES, resample=2),
        lambda folder: (folder / "chat_template.jinja").write_text(
            (folder / "chat_template.jinja").read_text().replace("You help.", "You see.")
        ),
    ],
)
def test_what_moves_a_score_moves_the_hash(spoil, copy) -> None:
    folder = flat(copy("llava"))
    before = processor_sha256(read(folder))
    spoil(folder)
    assert processor_sha256(read(folder)) != before


def test_a_processor_in_use_keeps_its_hash(checkpoint) -> None:
    mlm = load_mlm(str(checkpoint("llava")))
    before = processor_sha256(mlm.processor)
    inputs(mlm)
    assert processor_sha256(mlm.processor) == before


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_damaged_files_are_one_line(text, copy) -> None:
    for file in (PROCESSOR, IMAGES):
        folder = flat(copy("llava"))
        (folder / file).write_text(text)
        with pytest.raises(ValueError) as error:
            read(folder)
        assert "\n" not in str(error.value) and len(str(error.value)) < 700
        shutil.rmtree(folder)
