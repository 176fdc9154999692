"""`kvfix families`, and what a model without a row is answered with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import tiny
from commands import call

from kvfix.mlm import families
from kvfix.mlm.families import FAMILIES


def test_families_are_listed_with_what_they_need() -> None:
    ended = call("families", "--json")
    assert ended.code == 0
    assert [row["model_type"] for row in json.loads(ended.out)] == list(FAMILIES)
    said = {line.partition(":")[0]: line for line in ended.err.splitlines()}
    assert FAMILIES.keys() <= said.keys()
    assert "needs the package num2words" in said["smolvlm"]
    assert "an image's tokens see all of it" in said["gemma3"]
    assert said["mllama"].startswith("mllama: refused, its image keys and values stand in cross-")
    assert "qwen3" in said["language models inside"]
    one = call("families", "qwen3_vl")
    assert one.code == 0 and one.err.startswith("qwen3_vl: Qwen/Qwen3-VL-4B-Instruct; the whole")


def test_an_unknown_model_is_told_what_a_row_holds_and_where() -> None:
    unknown = call("families", "aria")
    assert unknown.code == 1 and "found 'aria' (a multimodal model of a family" in unknown.error
    assert "it would take a row in kvfix/mlm/families.py (paths of vision tower" in unknown.error
    assert "CONTRIBUTING.md says how" in unknown.error
    refused = call("families", "mllama")
    assert refused.code == 1 and "cross-attention layers" in refused.error
    assert "it would take" not in refused.error


def test_family_names_stand_in_one_table_only() -> None:
    package = Path(families.__file__).parent
    for file in package.rglob("*.py"):
        if file.name != "families.py":
            code = file.read_text(encoding="utf-8")
            assert not re.search(r"""["'](qwen|llava)["'] in |==\s*["'](qwen|llava)""", code), file
    assert set(FAMILIES) == set(tiny.EVERY) <= set(tiny.BUILDERS)
