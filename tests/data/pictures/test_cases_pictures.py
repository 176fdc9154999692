"""Pictures as users have them, kept beside the checkout: what is made of each.

Marked ``shared``: the files are not part of the project. Ordinary tests make their own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image, ImageOps
from places import SHARED

from kvfix.data.catalog import check, load_units
from kvfix.data.training.dataset import read_conversations

pytestmark = [pytest.mark.shared, pytest.mark.slow]

CASES = SHARED / "cases"
NUMBER = 12  # the question with the case's picture, val_Counting_13


@pytest.mark.parametrize(
    ("case", "left_out"), [("eval_16bit", []), ("eval_ratio", ["val_Counting_13"])]
)
def test_questions_are_answered_but_for_a_picture_that_none_can_read(
    case: str, left_out: list[str], tmp_path: Path
) -> None:
    words = ("--site", "value", "--data", f"blink={CASES / case}", "--out", tmp_path / "run")
    ended = call("eval", *words)
    assert ended.code == 0 and "Traceback" not in ended.err, ended.err
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert [entry["id"] for entry in run["left_out"]] == left_out
    answered = {r["n"] for r in run["results"] if r["task"] == "mcq"}
    assert answered == {24 - len(left_out)}
    problems = check(f"blink={CASES / case}")
    assert problems == [entry["why"] for entry in run["left_out"]]
    assert all("row 12" in p and "found 2 x 900" in p for p in problems)


def test_sixteen_bits_keep_their_greys() -> None:
    (units,) = load_units([f"blink={CASES / 'eval_16bit'}"], questions=True)
    rgb_HW3 = np.asarray(units.load(NUMBER).images[0])
    assert len(np.unique(rgb_HW3)) > 190 and rgb_HW3.min() < 20 and 200 < rgb_HW3.max() < 215
    image = read_conversations(CASES / "train_16bit/train.jsonl")[0].photos[0].read().image
    stored = np.asarray(Image.open(CASES / "train_16bit/images/grey16.png")).astype(float)
    assert np.abs(np.asarray(image)[..., 0] - stored / 257).max() <= 1


def test_a_phone_photo_is_upright_and_what_is_transparent_is_white() -> None:
    photo = read_conversations(CASES / "train_exif/train.jsonl")[0].photos[0].read().image
    expected = ImageOps.exif_transpose(Image.open(CASES / "train_exif/images/exif6.jpg"))
    assert photo.size == (80, 120) and photo.tobytes() == expected.convert("RGB").tobytes()
    flag = read_conversations(CASES / "train_alpha/train.jsonl")[0].photos[0].read().image
    rgba = Image.open(CASES / "train_alpha/images/alpha.png")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    assert flag.tobytes() == white.tobytes()


@pytest.mark.parametrize(
    ("case", "name", "found"),
    [
        ("train_ratio", "thin2.png", "differ at most 200 times, found 2 x 900"),
        ("train_truncated", "truncated.jpg", "found a broken file (image file is truncated"),
    ],
)
def test_a_bad_picture_of_a_training_file_is_named_by_check(
    case: str, name: str, found: str
) -> None:
    ended = call("data", "check", f"train={CASES / case / 'train.jsonl'}")
    assert "Traceback" not in ended.err
    said = " ".join((ended.out + ended.err).split())
    assert name in said and found in said
