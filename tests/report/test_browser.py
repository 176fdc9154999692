"""The report in a real browser: flipped, sorted and filtered by mouse and keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import printed_pages, watched
from fake_runs import fake_run
from test_asked import answer, write

from kvfix.report.html import write_report

if TYPE_CHECKING:
    from playwright import sync_api as playwright

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser: playwright.Browser, report_page: Path) -> Iterator[playwright.Page]:
    """The report at 1400 pixels."""
    with watched(browser, report_page) as opened:
        yield opened


def test_the_title_is_the_name_of_the_model(page: playwright.Page) -> None:
    assert page.title().startswith("llava_onevision")


def test_pictures_flip_by_keyboard(page: playwright.Page) -> None:
    flip = page.locator(".flip").first
    slider = flip.locator("input")
    before = flip.locator("figure:visible figcaption").inner_text()
    slider.press("Home")
    first = flip.locator("figure:visible figcaption").inner_text()
    slider.press("End")
    last = flip.locator("figure:visible figcaption").inner_text()
    assert flip.locator("figure:visible").count() == 1
    assert first.startswith("vision") and len({before, first, last}) >= 2
    assert slider.get_attribute("aria-valuetext") == flip.locator("label span").inner_text()


def test_a_curve_says_its_numbers_under_the_mouse_and_by_arrow_keys(page: playwright.Page) -> None:
    figure = page.locator("figure.panel").first
    said, svg = figure.locator("output"), figure.locator("svg")
    rest = said.inner_text()
    svg.locator(".stage rect").last.hover()
    assert said.inner_text().startswith("layer ")
    page.mouse.move(1, 1)
    assert said.inner_text() == rest
    svg.focus()
    assert said.inner_text().startswith("vision encoder")
    svg.press("ArrowRight")
    assert said.inner_text().startswith("projector")


def test_tables_sort_by_their_headings(page: playwright.Page) -> None:
    table = page.locator("table.overview.sortable").first
    heading = table.locator("th", has_text="Chance")
    for order, reverse in (("descending", True), ("ascending", False)):
        heading.locator("button").press("Enter")
        assert heading.get_attribute("aria-sort") == order
        column = [float(t) for t in table.locator("tbody tr td:nth-child(8)").all_inner_texts()]
        assert column == sorted(column, reverse=reverse)


def test_questions_are_filtered_and_open_by_keyboard(page: playwright.Page) -> None:
    asked = page.locator(".asked")
    questions, status = asked.locator("details"), asked.locator("[role=status]")
    every = questions.count()
    assert status.inner_text() == f"{every} of {every} questions" and every >= 4
    task = questions.first.get_attribute("data-task")
    asked.locator("select").first.select_option(task)
    shown = asked.locator("details:visible")
    assert 0 < shown.count() < every
    assert {q.get_attribute("data-task") for q in shown.all()} == {task}
    shown.first.locator("summary").press("Enter")
    opened = shown.first.locator(".question")
    assert opened.locator("img").is_visible() and opened.locator("li").count() >= 2
    assert "The model:" in opened.inner_text()


def test_a_report_with_many_questions_and_findings_prints_on_at_most_12_pages(
    browser: playwright.Browser, tmp_path: Path
) -> None:
    skills = [f"Skill_{k}" for k in range(9)]
    rows = [
        answer(f"{s} {k}", correct=k % 2, subtask=s, text="(A)") for s in skills for k in range(24)
    ]
    folder = write(tmp_path / "run", rows)
    run = fake_run(heads=True)
    share = {"value": 0.4, "ci": [0.3, 0.5]}
    shares = dict.fromkeys(("readout", "answer", "of_all", "of_wrong", "shuffled", "beyond"), share)
    told = {"dataset": "scenes", "layer": 3, "n": 24, "clear": True, **shares}
    run["surfacing"] = [
        {**told, "subtask": s, "scoring": how} for s in skills for how in ("generation", "logprob")
    ]
    trained = {"n": 48, "split": "train", "folds": 5, "cv_accuracy": 0.7}
    run["surfacing_trained"] = [row | {"training": trained} for row in run["surfacing"]]
    run["findings"] *= 6
    (folder / "run.json").write_text(json.dumps(run))
    with watched(browser, write_report(folder)) as page:
        pages = printed_pages(page, tmp_path / "page.pdf")
        intervals = {t.strip() for t in page.locator("td small").all_inner_texts() if "[" in t}
    assert len(pages) <= 12 and all(p.strip() for p in pages), len(pages)
    assert len(intervals) > 10 and not [t for t in intervals if t not in "".join(pages)]
