"""`kvfix compare`: a change is found with its sign, no change is none, other data is refused."""

from __future__ import annotations

import copy
import html as stdlib_html
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from commands import call
from curves import Place, rows
from rich.console import Console
from two_runs import (
    AFTER_QUIZ,
    BEFORE_QUIZ,
    DATA,
    LAYERS,
    UNITS,
    Rows,
    Runner,
    curve,
    place,
    probe_run,
    quiz,
    runner,
    save,
)

from kvfix.compare.run import Options, compare
from kvfix.diagnose.best_layer import best_value_layer
from kvfix.eval.results import Table
from kvfix.report.compare_table import sentences, tables

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=http://evil.test/x onerror=a()> | `x` [a](http://b)"
)


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Compare two lists of samples."""
    return runner(tmp_path)


def test_a_planted_repair_is_found_with_its_sign(run: Runner) -> None:
    after = curve(3, lift={"value": 0.1, "projector": -0.05}, seed=1)
    got = run(probe_run(curve(3)), probe_run(after))
    assert not got.failed
    assert {f["id"] for f in got.record["findings"]} == {
        "compare.best",
        "compare.last",
        "compare.projector",
    }
    for name, planted in (("best", 0.1), ("last", 0.1), ("projector", -0.05), ("vision", 0.0)):
        row = place(got.record, name)
        assert row["value"] == pytest.approx(planted, abs=0.012)
        assert row["after"] - row["before"] == pytest.approx(row["value"])
        assert row["ci"][0] <= row["value"] <= row["ci"][1]
        assert row["ci_all"] == pytest.approx(row["ci"])  # one task: nothing to correct
        assert row["clear"] == (planted != 0)
    assert place(got.record, "best")["n"] == UNITS // 2  # the half that did not choose
    assert place(got.record, "last")["n"] == UNITS
    text = next(f["text"] for f in got.record["findings"] if f["id"] == "compare.projector")
    assert text.startswith("Semantic correspondence: AFTER loses 0.0")
    assert len(got.record["results"]) == LAYERS + 2


def test_identical_runs_differ_by_exactly_zero(run: Runner) -> None:
    probes = run(probe_run(curve(2)), probe_run(curve(2))).record
    assert probes["findings"] == []
    assert all(r["value"] == 0 and r["ci"] == [0, 0] for r in probes["probes"] + probes["results"])


def test_identical_answers_differ_by_exactly_zero(run: Runner) -> None:
    answers = quiz({"x": "1010", "y": "110011"}, unread="x_1")
    record = run(answers, answers).record
    [q] = record["questions"]
    assert record["findings"] == []
    for row in (q["macro"], q["micro"], *q["tasks"], q["format"]["read_twice"]):
        assert row["value"] == 0 and row["ci"] == [0, 0]
    assert all(r["p"] == r["p_holm"] == 1 and r["fixed"] == r["broken"] == 0 for r in q["tasks"])
    assert q["macro"]["minimum_detectable"] is None and q["format"]["letter_shift"] == 0


def test_the_best_layer_is_the_best_of_before_on_the_half_that_chooses(
    run: Runner,
) -> None:
    """The trap: AFTER is by far best at layer 1, where BEFORE was not."""
    before, after = curve(3), curve(1)
    after["value", 1] = after["value", 1] + 0.5
    record = run(probe_run(before), probe_run(after)).record
    best = place(record, "best")
    assert best["layer"] == 3 and best["value"] < -0.1
    assert [f["text"] for f in record["findings"] if "layer 3, the best of BEFORE" in f["text"]]

    # Layers that are all alike: whichever was lucky in BEFORE must not count against AFTER.
    rng = np.random.default_rng(1)
    values: list[float] = []
    for _ in range(60):
        flat = [{("value", i): rng.normal(0, 1, 24) for i in range(20)} for _ in "ab"]
        table = Table(rows(flat[0], a_cluster=1))
        chosen = best_value_layer(table, seed=0)
        assert chosen is not None
        pairs = [np.stack(list(f.values()), axis=1)[chosen.report_N, chosen.layer] for f in flat]
        values.append(float((pairs[1] - pairs[0]).mean()))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)


def test_the_units_that_chose_the_layer_do_not_compare_it(run: Runner) -> None:
    before = curve(3)
    table = Table(rows(before))
    best = best_value_layer(table, seed=0)
    assert best is not None and best.honest
    after = copy.deepcopy(before)
    after["value", 3][~best.report_N] += 1.0  # a change that only the choosing half shows
    assert place(run(probe_run(before), probe_run(after)).record, "best")["value"] == 0


def test_pooled_ratios_are_ratios_of_sums(run: Runner) -> None:
    def with_areas(scale: float) -> Rows:
        out = []
        for i, r in enumerate(probe_run(curve(3))):
            union = 10.0 + i % 7
            out.append({**r, "inter": scale * union * (i % 3), "union": 4 * union})
        return out

    record = run(with_areas(1.0), with_areas(1.5)).record
    vision = place(record, "vision", "pooled IoU")
    mine = [r for r in with_areas(1.0) if r["site"] == "vision"]
    wanted = sum(r["inter"] for r in mine) / sum(r["union"] for r in mine)
    assert vision["before"] == pytest.approx(wanted)
    assert vision["value"] == pytest.approx(0.5 * wanted)
    assert vision["ci"][0] > 0 and vision["n"] == UNITS


def test_several_tasks_are_corrected_for(run: Runner) -> None:
    def both(scores: Mapping[Place, np.ndarray]) -> Rows:
        one = probe_run(scores)
        return one + [{**r, "task": "cosegmentation", "metric": "Jaccard"} for r in one]

    record = run(both(curve(3)), both(curve(3, lift={"value": 0.1}, seed=1))).record
    assert len({r["task"] for r in record["probes"]}) == 2
    for row in record["probes"]:
        assert row["ci_all"][0] < row["ci"][0] and row["ci_all"][1] > row["ci"][1]


def test_answers_by_hand(run: Runner) -> None:
    record = run(quiz(BEFORE_QUIZ), quiz(AFTER_QUIZ)).record
    [q] = record["questions"]
    jigsaw, style = q["tasks"]
    assert (jigsaw["n"], jigsaw["fixed"], jigsaw["broken"]) == (40, 18, 1)
    assert jigsaw["before"] == 0.5 and jigsaw["after"] == pytest.approx(37 / 40)
    assert jigsaw["p"] == pytest.approx(2 * 20 / 2**19)
    assert jigsaw["p_holm"] == pytest.approx(2 * jigsaw["p"]) and style["p_holm"] == 1
    assert q["micro"]["value"] == pytest.approx(17 / 80)
    assert q["macro"]["value"] == pytest.approx(17 / 80)
    assert q["macro"]["ci"][0] > 0 and q["n"] == 80 and q["macro"]["tasks"] == 2
    z = 1.959964 + 0.841621
    assert jigsaw["minimum_detectable"] == pytest.approx(z * np.sqrt(19 / 40 / 40), rel=1e-5)
    ids = [f["id"] for f in record["findings"]]
    assert ids[:3] == ["compare.macro", "compare.micro", "compare.task"]
    assert "Jigsaw: accuracy rises from 50.0 % to 92.5 %" in record["findings"][2]["text"]


def test_a_gain_by_format_alone_is_called_one(run: Runner) -> None:
    """18 answers could not be read before and are right now; where both were read nothing moved."""
    unread = " ".join(f"Jigsaw_{i}" for i in range(18))
    after = {"Jigsaw": "1" * 18 + "00" + "1" * 20, "Art_Style": "01" * 20}
    record = run(quiz(BEFORE_QUIZ, unread=unread), quiz(after)).record
    form = record["questions"][0]["format"]
    assert form["unparsed"]["before"] == pytest.approx(18 / 80)
    assert form["unparsed"]["after"] == 0 and form["unparsed"]["p"] < 1e-4
    assert form["fixed_unread"] == 18 and form["broken_unread"] == 0
    assert form["read_twice"]["n"] == 62 and form["read_twice"]["value"] == 0
    assert form["read_twice"]["share_of_micro"] == 0
    [text] = [f["text"] for f in record["findings"] if f["id"] == "compare.format"]
    assert "Of 18 fixed questions 18 had no readable answer before" in text
    assert "read both times micro accuracy stays" in text
    share = {r["letter"]: (r["before"], r["after"], r["right"]) for r in form["letters"]}
    assert share["A"] == pytest.approx((40 / 80, 58 / 80, 1.0))
    assert share["B"] == pytest.approx((22 / 80, 22 / 80, 0.0))
    assert share["unparsed"] == pytest.approx((18 / 80, 0, 0))
    assert form["letter_shift"] == pytest.approx(18 / 80)


def test_log_probability_answers_stand_beside_the_written_ones(run: Runner) -> None:
    before = [{**r, "logprob_correct": 1} for r in quiz(BEFORE_QUIZ)]
    after = [{**r, "logprob_correct": 1} for r in quiz(AFTER_QUIZ)]
    record = run(before, after).record
    assert record["questions"][0]["logprob"]["macro"]["value"] == 0
    assert record["questions"][0]["macro"]["value"] > 0
    assert run(quiz(BEFORE_QUIZ), after).record["questions"][0]["logprob"] is None


def test_questions_that_share_a_cluster_are_pointed_out(run: Runner) -> None:
    def shared(found: Rows) -> Rows:
        return [{**r, "cluster": f"{r['task']}{i // 4}"} for i, r in enumerate(found)]

    record = run(shared(quiz(BEFORE_QUIZ)), shared(quiz(AFTER_QUIZ))).record
    assert any("80 questions in 20 clusters" in n for n in record["notes"])
    alone = run(quiz(BEFORE_QUIZ), quiz(AFTER_QUIZ)).record
    wide, narrow = (r["questions"][0]["micro"]["ci"] for r in (record, alone))
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


def text_of(page: str) -> str:
    """The page without tags and styles."""
    page = re.sub(r"<(svg|style)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(stdlib_html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_pages_hold_the_numbers_of_the_record(run: Runner, tmp_path: Path) -> None:
    got = run(quiz(BEFORE_QUIZ, unread="Jigsaw_0"), quiz(AFTER_QUIZ))
    assert json.loads((tmp_path / "out/compare.json").read_text()) == got.record
    assert got.report == tmp_path / "out/compare.html"
    page = text_of(got.report.read_text())
    markdown = (tmp_path / "out/compare.md").read_text()
    for row in got.record["questions"][0]["tasks"]:
        shown = (f"{100 * row['before']:.1f}", f"{100 * row['value']:+.1f}", row["task"][:3])
        for text in (page, markdown):
            assert all(s in text for s in shown)
    for finding in got.record["findings"]:
        assert finding["text"] in page
    assert "default-src 'none'" in got.report.read_text()


def test_hostile_texts_stay_texts(run: Runner, tmp_path: Path) -> None:
    def poison(found: Rows) -> Rows:
        keys = ("id", "task", "cluster", "letter", "answer")
        return [{**r, **{k: f"{HOSTILE}{r[k]}" for k in keys if r[k]}} for r in found]

    bad = [{**DATA, "dataset": HOSTILE}]
    folder = save(tmp_path / "before", poison(quiz(BEFORE_QUIZ)), data=bad)
    changed = {"fingerprint": {HOSTILE: HOSTILE}, "command": HOSTILE, "model": {"id": HOSTILE}}
    after = poison(quiz(AFTER_QUIZ))[:-1]
    after.append({"id": poison(quiz(AFTER_QUIZ))[-1]["id"], "left_out": HOSTILE})
    save(tmp_path / "after", after, data=bad, **changed)
    got = compare(Options(folder, tmp_path / "after", tmp_path / "out", 200), command=HOSTILE)
    page = got.report.read_text()
    markdown = (tmp_path / "out/compare.md").read_text()
    assert HOSTILE in text_of(page)
    for text in (page, markdown):
        assert text.count("<script") == (text is page)  # kvfix's own
        assert "<img" not in text
    markdown = re.sub(r"<pre>.*?</pre>", "", markdown, flags=re.S)  # nothing is a mark in there
    assert not re.search(r"(?<!\\)\[a\]\(http", markdown)
    assert not re.search(r"(?<!\\)`x", markdown)
    for line in markdown.splitlines():
        if line.startswith("| ") and "script" in line:
            head = markdown[: markdown.index(line)].split("\n\n")[-1].splitlines()[0]
            assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"\|", head))


def test_the_terminal_fits_80_columns(run: Runner) -> None:
    names = ("Functional_Correspondence", "Multi-view_Reasoning", "[bold]x[/bold]", "a" * 60)
    before = dict.fromkeys(names, "0" * 60 + "1" * 60)
    after = dict.fromkeys(names, "1" * 60 + "0" * 60)
    records = [run(quiz(before), quiz(after)).record]
    lift = {"value": 0.1, "vision": -0.1}
    records.append(run(probe_run(curve(3)), probe_run(curve(3, lift=lift))).record)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for record in records:
        for table in tables(record):
            assert console.measure(table).minimum <= 80
            console.print(table)
        console.print(sentences(record))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "Correspondence" in text and "Reasoning" in text  # no word is broken
    assert "…" not in text and "[bold]x[/bold]" in text
    assert "+0.100" in text or "+0.09" in text


def test_the_command(tmp_path: Path) -> None:
    before, after = save(tmp_path / "a", quiz(BEFORE_QUIZ)), save(tmp_path / "b", quiz(AFTER_QUIZ))
    out = tmp_path / "out"
    done = call("compare", before, after, "--out", out, "--json")
    assert done.code == 0 and json.loads(done.out) == json.loads((out / "compare.json").read_text())
    assert "Jigsaw" in done.err and str(out / "compare.html") in done.err.replace("\n", "")
    assert json.loads(done.out)["command"].startswith("kvfix compare")
    assert call("compare", before).code == 2
    missing = call("compare", before, tmp_path / "none", "--out", out)
    assert missing.code == 1 and "expected a run folder" in missing.error
    short = save(tmp_path / "short", quiz(AFTER_QUIZ)[:60])
    few = call("compare", before, short, "--out", out)
    assert few.code == 1 and "at most 5 %" in few.error
    assert json.loads((out / "compare.json").read_text())["questions"][0]["n"] == 60
