"""Nothing that comes from data runs in a browser: scripts, HTML and codes, on all three pages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import ATTACK, watched
from fake_runs import fake_run, save_run
from test_asked import answer, write
from two_answered_runs import two_runs

from kvfix.compare.run import Options, compare
from kvfix.report.html import write_report
from kvfix.report.index import write_index

if TYPE_CHECKING:
    from playwright import sync_api as playwright

pytestmark = pytest.mark.browser
IN_A_PATH = ATTACK.replace("/", "∕")


def harmless(browser: playwright.Browser, file: Path, *, seen: int) -> None:
    """The page shows the attack as text at least so often, and nothing of it runs."""
    with watched(browser, file) as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        for control in page.locator("summary, button, select").all():
            control.focus()
        assert page.evaluate("window.hit") is None
        assert page.locator("script").count() == 1
        assert page.locator("img[src='x']").count() == 0
        assert page.locator("body").inner_text().count("onerror=window.hit=2") >= seen


def hostile_answers(folder: Path, correct: int) -> Path:
    """A run whose question, options, answer, ids and subtask are an attack."""
    row = replace(
        answer(ATTACK, correct=correct, text=ATTACK, subtask=ATTACK), options=(ATTACK, ATTACK)
    )
    return write(folder, [row])


def test_on_the_report(browser: playwright.Browser, tmp_path: Path) -> None:
    folder = hostile_answers(tmp_path / IN_A_PATH, 0)
    run = fake_run()
    run["model"] = {"id": ATTACK, "adapter": ATTACK, "family": ATTACK, "dtype": ATTACK}
    run |= {"command": ATTACK, "notes": [ATTACK], "left_out": [{"task": ATTACK, "id": ATTACK}]}
    run["left_out"][0]["why"] = ATTACK
    for row in run["results"]:
        row |= {"dataset": ATTACK, "category": ATTACK}
    for found in run["findings"]:
        found |= {"text": ATTACK, "task": ATTACK}
    run["overlays"] = [{"task": ATTACK, "id": ATTACK, "file": ATTACK, "site": ATTACK, "layer": 1}]
    (folder / "run.json").write_text(json.dumps(run))
    harmless(browser, write_report(folder), seen=20)


def test_on_the_comparison(browser: playwright.Browser, tmp_path: Path) -> None:
    folder = tmp_path / IN_A_PATH
    sides = two_runs(folder)
    for correct, side in enumerate(sides):
        made = hostile_answers(folder / f"answers {correct}", correct)
        (made / "samples" / "mcq.jsonl").rename(side / "samples" / "mcq_more.jsonl")
        record = json.loads((side / "run.json").read_text())
        record["model"] = {"id": f"{ATTACK}{correct}", "adapter": ATTACK}
        record |= {"command": ATTACK, "versions": {ATTACK: ATTACK}}
        record["fingerprint"] |= {ATTACK: f"{ATTACK}{correct}"}
        (side / "run.json").write_text(json.dumps(record))
    options = Options(*sides, folder / "out", 200)
    harmless(browser, compare(options, command=ATTACK).report, seen=10)


def test_on_the_index(browser: playwright.Browser, tmp_path: Path) -> None:
    run = fake_run()
    run["model"] = {"id": ATTACK, "adapter": ATTACK}
    run |= {"kind": ATTACK, "started": ATTACK}
    for row in run["results"]:
        row |= {"task": ATTACK, "metric": ATTACK}
    folder = save_run(tmp_path / IN_A_PATH, run)
    harmless(browser, write_index([folder], tmp_path), seen=6)
