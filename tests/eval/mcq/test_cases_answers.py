"""Answers and results of other tools as users have them, from the cases kept beside the checkout.

Each case's README says what is right. The ordinary tests make small inputs of the same kinds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image
from places import SHARED

pytestmark = pytest.mark.shared

CASES = SHARED / "cases"

STYLES = ("think_answer_tag", "boxed", "md_bold", "correct_option", "letter_then_text", "restates")


@pytest.fixture(scope="module", autouse=True)
def _cases_are_there() -> None:
    if not CASES.is_dir():
        pytest.fail(f"no cases in {CASES}; set KVFIX_SHARED")


@pytest.mark.parametrize(
    ("predictions", "profile"),
    [
        *((f"blink_styles/{style}.json", "kvfix") for style in STYLES),
        ("lmms_eval_new_rule/pred.json", "lmms-eval"),
        ("lmms_eval_new_rule/pred.json", "kvfix"),
        ("lmms_eval_repeats", "kvfix"),
        ("vlmevalkit_json/model_BLINK.json", "kvfix"),
        ("vlmevalkit_json/model_BLINK.json", "vlmevalkit"),
    ],
)
def test_every_answer_reads_as_the_letter_meant(predictions: str, profile: str) -> None:
    path = CASES / predictions
    key = (path if path.is_dir() else path.parent) / "answers.json"
    done = call(
        *("score", "blink", "--predictions", path, "--answers", key),
        *("--profile", profile, "--json"),
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["correct"], found["n"], found["unparsed"]) == (12, 12, 0)
    assert found["follows"]


def test_the_rule_before_the_change_reads_none_of_them() -> None:
    folder = CASES / "lmms_eval_new_rule"
    done = call(
        *("score", "blink", "--predictions", folder / "pred.json"),
        *("--answers", folder / "answers.json", "--profile", "lmms-eval@before-1435", "--json"),
    )
    assert done.code == 0 and json.loads(done.out)["correct"] == 0


def test_masks_in_a_folder_for_each_object_are_read(tmp_path: Path) -> None:
    """Against label maps made of the same masks everything is right."""
    case = CASES / "davis_per_object"
    for mask in (case / "blackswan/001").glob("*.png"):
        with Image.open(mask) as image:
            labels_HW = (np.asarray(image) > 0).astype(np.uint8)
        path = tmp_path / "truth/blackswan" / mask.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels_HW).save(path)
    done = call("score", "davis", "--pred", case, "--gt", tmp_path / "truth", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["J&F-Mean"] == 1 and found["n_objects"] == 1
