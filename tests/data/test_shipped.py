"""The nano checkpoints that travel with kvfix."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from kvfix.data.scenes.shapes import COLOURS
from kvfix.data.scenes.units import scene_units
from kvfix.data.units import Sentence
from kvfix.shipped import DEFAULT_FAMILY, nano_dir, shipped_families

FAMILIES = shipped_families()
MEGABYTE = 2**20


def test_a_family_that_does_not_travel_with_kvfix_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint 'bagel', found none") as error:
        nano_dir("bagel")
    assert "family=bagel" in str(error.value) and "nano/bagel" in str(error.value)


def test_the_default_is_one_of_them() -> None:
    assert DEFAULT_FAMILY in FAMILIES
    assert nano_dir() == nano_dir(DEFAULT_FAMILY)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_small_and_safe(family: str) -> None:
    files = [p for p in nano_dir(family).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 12 * MEGABYTE
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".jinja", ".txt", ".md", ".yaml"}
    text = (nano_dir(family) / "README.md").read_text()
    assert "chance" in text and "unparsed" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_loads_the_folder_and_it_answers(family: str) -> None:
    folder = nano_dir(family)
    options = {"local_files_only": True, "trust_remote_code": False}
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.model_type == family
    stored = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", **options)
    assert stored.dtype == torch.bfloat16
    processor = AutoProcessor.from_pretrained(folder, **options)
    assert processor.chat_template and processor.tokenizer.is_fast
    scene = scene_units("semantic_segmentation", n=1).load(0)
    assert isinstance(scene, Sentence)
    text = {"type": "text", "text": f"What colour is the {scene.category}?"}
    talk = [{"role": "user", "content": [{"type": "image"}, text]}]
    asked = processor.apply_chat_template(talk, add_generation_prompt=True)
    inputs = processor(images=[scene.image], text=[asked], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])
    assert any(colour in answer for colour in COLOURS), answer
