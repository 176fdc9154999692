"""Training files in the layouts of other tools, kept beside the checkout: what comes of each.

Marked ``shared``: the files are not part of the project. Ordinary tests make their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import SHARED
from safetensors.torch import load_file

from kvfix.data.training.dataset import read_conversations
from kvfix.data.training.examples import conversation_examples
from kvfix.recipes.train_surfacing import train
from kvfix.repair.lora import LoraOptions
from kvfix.repair.proof import collator_of
from kvfix.repair.train.recipe import Recipe

pytestmark = [pytest.mark.shared, pytest.mark.slow]

CASES = SHARED / "cases"
MODEL = CASES / "models" / "llava_onevision"
BOTH = "LLaMA-Factory and ms-swift"


def data_of(case: str) -> Path:
    [file] = [p for p in (CASES / case).iterdir() if p.suffix in (".json", ".jsonl")]
    return file


def trained(case: str, out: Path) -> dict[str, Any]:
    """`training.json` of three steps on it."""
    recipe = Recipe(
        model=str(MODEL),
        data=str(data_of(case)),
        steps=3,
        batch=4,
        lora=LoraOptions(rank=4),
        threads=1,
        out=str(out),
    )
    train(recipe, command=["case"])
    adapter = load_file(out / "adapter_model.safetensors")
    assert any(t.any() for name, t in adapter.items() if "lora_B" in name)
    assert all(torch.isfinite(t).all() for t in adapter.values())
    return json.loads((out / "training.json").read_text())


@pytest.mark.parametrize(
    ("case", "n", "forms", "note"),
    [
        ("train_llava_json", 8, {"LLaVA": 8}, None),
        ("train_llamafactory", 8, {BOTH: 8}, None),
        ("train_swift", 8, {BOTH: 8}, "images of /data/x, which is not on this machine"),
        ("train_trl", 8, {"TRL": 8}, None),
        ("train_extra", 8, {"kvfix": 8}, "ignored: source, width"),
        ("train_dupid", 8, {"kvfix": 8}, "4 ids are repeated"),
        ("train_system", 8, {"kvfix": 8}, None),
        ("train_16bit", 8, {"kvfix": 8}, None),
        ("train_alpha", 8, {"kvfix": 8}, None),
        ("train_exif", 8, {"kvfix": 8}, None),
    ],
)
def test_a_case_is_read_and_trained(case, n, forms, note, tmp_path) -> None:
    data = trained(case, tmp_path / "out")["data"]
    assert (data["n"], data["forms"], data["left_out"]) == (n, forms, [])
    assert [x for x in data["notes"] if note is not None and note in x] == data["notes"]
    assert (note is None) == (not data["notes"])
    # All say the same in other forms.
    lines = read_conversations(data_of(case))
    assert len(set(lines.ids)) == n
    example = conversation_examples(lines)[0]
    assert [turn.answer for turn in example.turns] == ["A flag."]
    assert example.turns[0].user == (None, "What is this?") and len(example.images) == 1


@pytest.mark.parametrize(
    ("case", "left_out"),
    [
        ("train_truncated", "expected a photo, found a broken file"),
        ("train_ratio", "expected a photo whose sides differ at most 200 times, found 2 x 900"),
    ],
)
def test_a_bad_picture_is_found_before_the_first_step(case, left_out, tmp_path) -> None:
    data = trained(case, tmp_path / "out")["data"]
    lines = data_of(case).read_text().splitlines()
    [line] = data["left_out"]
    assert data["n"] == len(lines) - 1 and left_out in line
    number = int(line.split(":")[0].removeprefix("line "))
    [name] = json.loads(lines[number - 1])["images"]
    assert f"/{name}: expected" in line and name != json.loads(lines[0])["images"][0]


@pytest.mark.parametrize(
    ("case", "says"), [("train_system", "radiologist"), ("train_swift", "doctor")]
)
def test_a_system_turn_reaches_the_model(case, says) -> None:
    collator = collator_of(str(MODEL))
    example = conversation_examples(read_conversations(data_of(case)))[0]
    [text] = collator([example]).encoded.order_texts
    assert text.startswith("<|im_start|>system\nYou are a ") and says in text
    assert "You help." not in text  # the template's own


def test_pictures_look_as_they_should() -> None:
    def image(case: str) -> np.ndarray:
        return np.asarray(read_conversations(data_of(case))[0].photos[0].read().image)

    assert 20 < image("train_16bit").mean() < 235 and image("train_16bit").std() > 20
    tall = image("train_exif")
    assert tall.shape[0] > tall.shape[1]
    alpha = image("train_alpha")
    assert (alpha == 255).all(-1).any() and not (alpha == 0).all(-1).any()
