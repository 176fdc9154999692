"""`kvfix eval --format lmms-eval`: what kvfix's own reader of lmms-eval's dumps reads back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import call
from test_asked import answer, write

from kvfix.report.export.lmms_eval import write_lmms_eval

# What two subtasks' questions were answered, and whether that is right; the right one is B.
SAID = {
    "Jigsaw": [("(B)", 1), ("The answer is (A).", 0), ("", 0), ("(B) two", 1), ("both", 0)],
    "Multi-view_Reasoning": [("two", 1), ("B", 1), ("A", 0)],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run on BLINK, its rows in another order than the questions."""
    rows = []
    for subtask, texts in SAID.items():
        for number, (text, correct) in reversed(list(enumerate(texts, start=1))):
            name = f"val_{subtask}_{number}"
            row = answer(name, correct=correct, text=text, subtask=subtask)
            letter = {1: "B", 0: "A" if "A" in text else None}[correct]
            rows.append(replace(row, dataset="blink", letter=letter, unparsed=letter is None))
    folder = write(tmp_path / "run", rows)
    record = {
        "kind": "eval",
        "complete": True,
        "started": "2026-11-28T14:20:58.075054+00:00",
        "seconds": 12.5,
        "model": {"id": "org/model", "family": "llava", "adapter": "runs/a"},
        "mcq": {"version": 3, "profile": "kvfix"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_files_and_fields_are_those_of_lmms_eval(run: Path) -> None:
    results = write_lmms_eval(run)
    assert results == run / "lmms-eval" / "org__model" / "20261128_142058_results.json"
    found = json.loads(results.read_text())
    jigsaw = found["results"]["blink_jigsaw"]
    assert jigsaw["blink_acc,none"] == 2 / 5
    assert jigsaw["blink_acc_stderr,none"] == pytest.approx((0.4 * 0.6 / 4) ** 0.5)
    assert found["n-samples"]["blink_multi_view_reasoning"] == {"original": 3, "effective": 3}
    assert found["config"]["model_args"] == "pretrained=org/model,peft=runs/a"
    assert found["versions"]["blink_jigsaw"] == 3 and found["n-shot"]["blink_jigsaw"] == 0
    file = results.with_name("20261128_142058_samples_blink_jigsaw.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[3]["filtered_resps"] == ["(B) two"] and lines[3]["target"] == "(B)"
    assert lines[3]["blink_acc"]["is_correct"] is True and lines[1]["blink_acc"]["id"][-1] == "2"
    assert len(lines[0]["doc_hash"]) == 64


def test_kvfix_reads_the_same_accuracy_back(run: Path, tmp_path: Path) -> None:
    results = write_lmms_eval(run)
    assert results is not None
    key = tmp_path / "key.json"
    ids = [f"val_{t}_{k}" for t, said in SAID.items() for k in range(1, len(said) + 1)]
    key.write_text(json.dumps(dict.fromkeys(ids, "(B)")))
    for more in ((), ("--parsed",)):
        ended = call("score", "blink", "--predictions", run, "--answers", key, "--json", *more)
        assert ended.code == 0, ended.err
        tasks = json.loads(ended.out)["tasks"]
        assert {name: task["accuracy"] for name, task in tasks.items()} == {
            "Jigsaw": 2 / 5,
            "Multi-view_Reasoning": 2 / 3,
        }


def test_ids_without_numbers_keep_their_order(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [answer("b", correct=1), answer("a", correct=0)])
    (folder / "run.json").write_text('{"started": "2026-01-02T03:04:05+00:00", "seconds": 1}')
    results = write_lmms_eval(folder)
    assert results is not None and results.parent.name == "model"
    file = results.with_name("20260102_030405_samples_scenes_jigsaw.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(s["doc_id"], s["doc"]["idx"]) for s in found] == [(0, "b"), (1, "a")]


def test_a_run_without_questions_writes_nothing(tmp_path: Path) -> None:
    assert write_lmms_eval(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.skipif("LMMS_EVAL" not in os.environ, reason="LMMS_EVAL names no unpacked wheel")
def test_lmms_eval_itself_reads_them(run: Path) -> None:
    """Its loader of baselines, from its wheel of 0.7.3: no part of it is installed here."""
    results = write_lmms_eval(run)
    assert results is not None
    samples = results.with_name("20261128_142058_samples_blink_jigsaw.jsonl")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from lmms_eval.baselines.loader import load_baseline\n"
        "scores, whole = load_baseline(sys.argv[2], 'blink_jigsaw')\n"
        "print(sum(scores.values()), len(scores), whole['results']['blink_jigsaw'])"
    )
    words = [sys.executable, "-c", code, os.environ["LMMS_EVAL"], str(samples)]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.stdout.startswith("2.0 5 {'alias': 'blink_jigsaw'"), ended.stderr
