"""Every table of the terminal fits 80 columns, and no word in it is broken."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import dump_files
import pytest
import trees
from commands import KVFIX
from two_answered_runs import two_runs
from whole_words import fits

from kvfix.compare.run import Options, compare
from kvfix.report import compare_table, correlate, questions, surfacing, table
from kvfix.report.stages import clean


@pytest.fixture(scope="module")
def record(report_page: Path) -> dict[str, Any]:
    """The diagnosis of a tiny model, with layers of a large one and the longest names of BLINK."""
    run = json.loads((report_page.parent / "run.json").read_text())
    for row in (*run["results"], *run["surfacing"], *run["surfacing_trained"]):
        row["n"] = 12_234
        if row.get("subtask") == "Art_Style":
            row["subtask"] = "Functional_Correspondence"
        if row.get("layer") is not None:
            row["layer"] += 60
    for row in run["surfacing"]:
        row["readout"] = {"value": 1.0, "ci": [1.0, 1.0]}
        row["beyond"] = {"value": -0.5, "ci": [-1.0, -0.5]}
    return run


def test_tables_of_a_diagnosis(record: dict[str, Any]) -> None:
    shown = fits(table.summary(record)) + fits(surfacing.table(record))
    assert "Functional" in shown and "100\n" not in shown
    [board] = questions.boards(clean(record))
    assert "letters of the right answers" in fits(questions.table(board))
    fits(table.findings(record))


def test_tables_of_a_comparison(tmp_path: Path) -> None:
    before, after = two_runs(tmp_path)
    record = compare(Options(before, after, tmp_path / "out", 200), command="kvfix").record
    for row in (*record["questions"][0]["tasks"], *record["probes"]):
        row |= {"n": 12_234, "ci": [-0.999, 0.999]}
    record["questions"][0]["tasks"][0]["task"] = "Functional_Correspondence"
    for row in record["probes"]:
        row |= {
            "task": "temporal_correspondence",
            "dataset": "davis2017",
            "metric": "PCK per point",
        }
    shown = [fits(t) for t in compare_table.tables(record)]
    assert len(shown) == 3 and "best value" in shown[-1]
    fits(compare_table.sentences(record))


def test_the_table_of_a_correlation() -> None:
    row = {"task": "temporal_correspondence", "dataset": "davis2017", "metric": "J&F"}
    row |= {"questions": "Functional_Correspondence", "scoring": "generation", "layer": None}
    row |= {"rho": -0.123, "ci": [-0.512, 0.345], "p": 0.0001, "p_holm": 1.0, "n": 12}
    rows = [row | {"place": place, "clear": place == "best"} for place in correlate.SHOWN]
    assert "[-0.51, +0.34]" in fits(correlate.table({"correlations": rows}))


def test_tables_of_scores(tmp_path: Path) -> None:
    from kvfix.score.benchmarks import BENCHMARKS
    from kvfix.score.record import ScoreOptions, score
    from kvfix.score.show import table_of
    from kvfix.terminal import RichWatch

    dump, key = dump_files.official(tmp_path / "dump"), dump_files.key(tmp_path / "key")
    davis = trees.davis(tmp_path / "DAVIS", clips=("motocross-jump",))
    masks = davis / "Annotations" / "480p"
    for name, pred, truth, rules in (
        ("blink", dump, key, {"profile": "official", "parsed": False}),
        ("davis", masks, davis, {"year": None}),
    ):
        asked = ScoreOptions(pred, truth, None, 0, rules)
        record = score(BENCHMARKS[name], asked, command="kvfix", watch=RichWatch()).record
        if "tasks" in record:  # five letters, and the longest name of BLINK
            record["letters"] |= dict.fromkeys("DE", 3)
            record["tasks"]["Functional_Correspondence"] = record["tasks"].pop("Jar_Colour")
        fits(table_of(BENCHMARKS[name], record))


def test_the_table_of_a_plan() -> None:
    from kvfix.repair.plan.make import PlanOptions, PlanRequest, plan
    from kvfix.repair.plan.show import table as plan_table

    asked = PlanRequest(PlanOptions(gpus=8))
    made = plan(asked)
    assert "activations" in fits(plan_table(made, asked))


def test_training_lines_keep_step_loss_and_time_left() -> None:
    from rich.console import Console

    from kvfix.repair.train.show import Monitor

    terms = {f"loss_{name}": 0.5 for name in ("answer", "correspondence", "text_value", "distil")}
    for tty in (True, False):
        out = io.StringIO()
        shown = Console(file=out, width=80, force_terminal=tty, force_interactive=tty)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kvfix.repair.train.show.console", shown)
            with Monitor(12_000, Path("unused"), main=True) as monitor:
                monitor._log = io.StringIO()
                for step in (1, 2, 12_000):
                    monitor.line({"loss": 1.25, **terms, "images_per_s": 12.5, "step": step})
        said = out.getvalue()
        assert "loss 1.250" in said and "12.5 images/s" in said
        assert ("12000/12000" if tty else "step 12000 of 12000") in said
        if tty:
            assert "0:00:00" in said and "\x1b" in said
        else:
            assert said.count("\n") == 2 and "\x1b" not in said  # the first step and the last


def test_pipes_and_no_color_get_no_codes(tmp_path: Path) -> None:
    """In a pseudo-terminal with NO_COLOR no colour is sent; in a pipe no code at all."""
    import pty

    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "80", "TERM": "xterm-256color"}
    main, child = pty.openpty()
    with subprocess.Popen([KVFIX, "families"], stderr=child, stdout=child, env=env) as ran:
        os.close(child)
        said = b""
        try:
            while part := os.read(main, 4096):
                said += part
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(main)
    assert ran.returncode == 0 and b"\x1b[3" not in said
    lines = said.decode().replace("\r", "").splitlines()
    assert max(map(len, lines)) <= 80 and any(line.startswith("qwen3_vl:") for line in lines)
    piped = subprocess.run([KVFIX, "families", "--json"], capture_output=True, env=env)
    assert b"\x1b" not in piped.stderr + piped.stdout and json.loads(piped.stdout)
