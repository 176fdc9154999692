"""BLINK's published figures from its own raw and parsed outputs, kept beside the checkout.

Source: zeyofu/BLINK_Benchmark, ``eval/saved_outputs`` and ``eval/evaluate.py``; the figures without
a judge and those of other suites are the suites' rules applied once to the same raw outputs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import call
from places import SHARED

from kvfix.eval.mcq.letters.parse import extract

pytestmark = pytest.mark.shared

BLINK = SHARED / "goldens/blink"

# Macro and micro of the parsed answers, as shares.
PUBLISHED = {
    "llava_v1.5_7b": (0.3712744612837347, 0.3634928984744871),
    "llava-v1.6-34b": (0.46797566380866806, 0.4618621778011573),
    "GPT4V": (0.5108906599240415, 0.5039452919516044),
}
# Micro in percent from the raw text, no judge, no option texts.
FROM_TEXT = {
    "official": {"GPT4V": 39.5, "llava_v1.5_7b": 26.0, "llava-v1.6-34b": 46.2},
    "lmms-eval": {"GPT4V": 44.7, "llava_v1.5_7b": 27.0, "llava-v1.6-34b": 46.2},
    "lmms-eval@before-1435": {"GPT4V": 18.0, "llava_v1.5_7b": 0.0, "llava-v1.6-34b": 46.2},
    "vlmevalkit": {"GPT4V": 14.4, "llava_v1.5_7b": 33.6, "llava-v1.6-34b": 46.2},
}


@pytest.fixture(scope="module", autouse=True)
def _goldens_are_there() -> None:
    if not BLINK.is_dir():
        pytest.fail(f"no reference outputs in {BLINK}; set KVFIX_SHARED")


def scored(model: str, *more: str) -> dict:
    done = call(
        *("score", "blink", "--predictions", BLINK / "saved_outputs" / model),
        *("--answers", BLINK / "val_answers.json", "--json", *more),
    )
    assert done.code == 0, done.err
    return json.loads(done.out)


def golden_of(model: str) -> dict:
    golden = json.loads((BLINK / "golden_val_accuracy.json").read_text())[model]
    assert (golden["macro"], golden["micro"]) == PUBLISHED[model]
    return golden


def same(found: dict, golden: dict) -> None:
    assert found["macro"] == pytest.approx(golden["macro"], abs=1e-12)
    assert found["micro"] == pytest.approx(golden["micro"], abs=1e-12)
    assert found["n"] == 1901 and len(found["tasks"]) == 14
    for task, figures in found["tasks"].items():
        assert figures["accuracy"] == pytest.approx(golden[task], abs=1e-12)


@pytest.mark.parametrize("model", [m for m in PUBLISHED if m != "GPT4V"])
def test_parsed_answers_give_the_published_figures(model: str) -> None:
    same(scored(model, "--profile", "official", "--parsed"), golden_of(model))


def test_the_official_script_counts_the_predictions_that_a_dump_stores(tmp_path: Path) -> None:
    """``get_prediction_file`` takes each question's `prediction`, ``eval_prediction`` compares it
    with the key as a string; a record's text and own answer do not count.

    So counted, the dump of GPT4V has 959 right answers. The published 958 are of another file,
    ``saved_val_predictions/GPT4V.json``: where the rules find no letter the script asks a judge,
    and for val_Functional_Correspondence_26 it was asked twice, with (C) and with (D) for answer.
    """
    golden, twice = golden_of("GPT4V"), "val_Functional_Correspondence_26"
    key = json.loads((BLINK / "val_answers.json").read_text())
    stored = {
        record["idx"]: record["prediction"]
        for file in (BLINK / "saved_outputs/GPT4V").glob("*.json")
        for record in json.loads(file.read_text())["val"]
    }
    found = scored("GPT4V", "--profile", "official", "--parsed")
    assert found["correct"] == sum(stored[name] == answer for name, answer in key.items()) == 959
    assert found["macro"] == pytest.approx(golden["macro"] + 1 / 130 / 14, abs=1e-12)
    plain = tmp_path / "GPT4V.json"
    plain.write_text(json.dumps(stored | {twice: "(D)"}))
    same(scored(str(plain), "--profile", "official", "--parsed"), golden)


@pytest.mark.parametrize("profile", FROM_TEXT)
@pytest.mark.parametrize("model", PUBLISHED)
def test_raw_text_gives_the_figures_of_each_suites_rules(model: str, profile: str) -> None:
    found = scored(model, "--profile", profile)
    assert 100 * found["micro"] == pytest.approx(FROM_TEXT[profile][model], abs=0.1)
    for oddity in ("missing", "not_text", "unknown", "disagreeing"):
        assert found[oddity] == []


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_own_profile_reads_no_other_letter_than_the_judge(model: str) -> None:
    """The suite's judge read the options' texts too, so that it read more, but nothing else."""
    folder = BLINK / "saved_outputs" / model
    records = [r for f in folder.glob("*.json") for r in json.loads(f.read_text())["val"]]
    both = [
        (letter, r["prediction"][1])
        for r in records
        if (letter := extract(r["full_prediction"])) and re.fullmatch(r"\([A-E]\)", r["prediction"])
    ]
    assert len(both) > 1300 and all(mine == judged for mine, judged in both)


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_own_profile_contradicts_no_letter_that_the_official_rules_find(model: str) -> None:
    own, official = scored(model), scored(model, "--profile", "official")
    assert own["correct"] >= official["correct"]
