"""What `kvfix compare` pairs, lists and refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from two_runs import (
    AFTER_QUIZ,
    BEFORE_QUIZ,
    DATA,
    LAYERS,
    UNITS,
    Runner,
    curve,
    other,
    place,
    probe_run,
    quiz,
    runner,
)

from kvfix.compare.run import Options, compare


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Compare two lists of samples."""
    return runner(tmp_path)


def test_units_of_one_run_only_are_listed_with_the_reason(run: Runner, tmp_path: Path) -> None:
    before = probe_run(curve(3))
    after = [r for r in before if r["id"] not in ("u7", "u8")]
    after.append({"id": "u7", "task": "semantic_correspondence", "left_out": "7.png: torn"})
    got = run(before, after)
    [units] = got.record["units"]
    assert units["shared"] == UNITS - 2 and units["only_before"] == ["u7", "u8"]
    assert units["only_after"] == [] and units["why"] == {"u7": "7.png: torn"}
    assert not got.failed  # 2 of 48 are within 5 %
    assert place(got.record, "last")["n"] == UNITS - 2
    page = (tmp_path / "out/compare.html").read_text()
    assert "7.png: torn" in page and "u8" in (tmp_path / "out/compare.md").read_text()
    assert run(before, [r for r in before if r["id"] not in ("u7", "u8", "u9")]).failed


def test_controls_and_sites_of_one_run_only_are_not_compared(run: Runner) -> None:
    before = probe_run(curve(3))
    control = [{**r, "control": "random_weights", "score": 99.0} for r in before]
    extra = [{**r, "rows": LAYERS + 3} for r in before]
    extra += [{**r, "rows": LAYERS + 3, "site": "key"} for r in before if r["layer"] == 0]
    record = run(before, extra + control).record
    assert record["findings"] == [] and len(record["results"]) == LAYERS + 2
    assert any("1 sites are in AFTER only" in n and "key" in n for n in record["notes"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"data": [DATA | {"sha256": "e" * 64}]}, "blink/mcq: expected the same data"),
        ({"data": [DATA | {"split": "val"}]}, "blink/mcq: expected the same data"),
        ({"data": []}, 'expected a list "data"'),
        (other(profile="official"), "profile: expected the same before and after"),
        (other(protocol=2), "protocol: expected the same before and after"),
        ({"complete": False}, "found one that was interrupted"),
    ],
)
def test_other_data_or_rules_are_refused(
    changed: dict[str, Any], says: str, run: Runner, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        run(quiz(BEFORE_QUIZ), quiz(AFTER_QUIZ), **changed)
    assert not (tmp_path / "out").exists()


def test_fewer_units_of_the_same_data_are_not_other_data(run: Runner) -> None:
    got = run(quiz(BEFORE_QUIZ), quiz(AFTER_QUIZ)[:60], data=[DATA | {"n": 60}])
    assert got.record["questions"][0]["n"] == 60 and got.failed


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("answer", "C", "question Jigsaw_3: expected the same answer before and after"),
        ("task", "IQ_Test", "question Jigsaw_3: expected the same subtask before and after"),
        ("cluster", "z", "question Jigsaw_3: expected the same cluster before and after"),
        ("correct", 0.5, "samples.jsonl:4: expected correct to be 0 or 1"),
        ("correct", None, "samples.jsonl:4: expected a finite score"),
        ("id", "Jigsaw_2", "expected question Jigsaw_2 once"),
        ("id", 3, "samples.jsonl:4: expected texts as id"),
    ],
)
def test_questions_that_are_not_the_same_are_refused(
    key: str, value: Any, says: str, run: Runner
) -> None:
    after = quiz(AFTER_QUIZ)
    after[3][key] = value
    with pytest.raises(ValueError, match=re.escape(says)):
        run(quiz(BEFORE_QUIZ), after)


def test_torn_units_missing_fields_and_strangers_are_refused(run: Runner, tmp_path: Path) -> None:
    before = probe_run(curve(3))
    with pytest.raises(ValueError, match="expected one line a site for unit u47"):
        run(before, before[:-1])
    with pytest.raises(ValueError, match=r"samples.jsonl:1: expected metric, found"):
        run(before, [{k: v for k, v in before[0].items() if k != "metric"}])
    with pytest.raises(ValueError, match=r"scored, found none: .*scenes.*; .*mcq \(blink\)"):
        run(before, quiz(AFTER_QUIZ))
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        compare(Options(tmp_path / "none", tmp_path / "after"), command="")
    (tmp_path / "after/samples/samples.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(ValueError, match=r"samples.jsonl:1: expected one JSON object"):
        compare(Options(tmp_path / "before", tmp_path / "after"), command="")


def test_what_else_differs_is_said(run: Runner) -> None:
    record = run(quiz(BEFORE_QUIZ), quiz(AFTER_QUIZ), **other(prompt="Look!", adapter=None)).record
    assert {d["key"]: d["expected"] for d in record["differs"]} == {
        "weights": True,
        "prompt": False,
    }
    assert any('differ in prompt (null before, "Look!" after)' in n for n in record["notes"])
    mixed = [{"versions": {"torch": v}} for v in ("2.13", "2.14")]
    later = other(attn="sdpa", device="cpu", adapter=None)
    record = run(quiz(BEFORE_QUIZ), quiz(AFTER_QUIZ), **later, starts=mixed).record
    assert [d["key"] for d in record["differs"]] == ["weights"]  # unknown is not different
    [unknown] = [n for n in record["notes"] if "older kvfix" in n]
    assert unknown.startswith("BEFORE was written") and "record attn, device;" in unknown
    assert any("AFTER was interrupted" in n and "torch 2.13 and 2.14" in n for n in record["notes"])
    same = run(quiz(BEFORE_QUIZ), quiz(AFTER_QUIZ), **other(weights="before", adapter=None)).record
    assert any("same weights" in n for n in same["notes"])
