"""The comparison in a real browser: fixed and broken questions open, tables sort."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import watched

if TYPE_CHECKING:
    from playwright import sync_api as playwright

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser: playwright.Browser, compare_page: Path) -> Iterator[playwright.Page]:
    """The comparison at 1400 pixels."""
    with watched(browser, compare_page) as opened:
        yield opened


def test_fixed_and_broken_questions_are_filtered_and_open(page: playwright.Page) -> None:
    asked = page.locator(".asked")
    status, shown = asked.locator("[role=status]"), asked.locator("details:visible")
    assert status.inner_text() == "26 of 26 questions"
    for outcome, count in (("fixed", 23), ("broken", 3)):
        asked.get_by_label("every outcome").select_option(outcome)
        assert status.inner_text() == f"{count} of 26 questions" and shown.count() == count
        assert {q.get_attribute("data-outcome") for q in shown.all()} == {outcome}
    shown.first.locator("summary").press("Enter")
    by_key = shown.first.locator(".question")
    assert by_key.locator("img").is_visible() and by_key.locator("li").count() == 2
    said = by_key.inner_text()
    assert "Before: (B)" in said.replace("“", "").replace("”", "").replace('"', "")
    shown.last.locator("summary").click()
    assert shown.last.locator(".question").is_visible()
    asked.get_by_label("every task").focus()
    page.keyboard.press("ArrowDown")
    tasks = {q.get_attribute("data-task") for q in shown.all()}
    assert len(tasks) == 1 and 0 < shown.count() < 3


def test_what_is_too_small_to_tell_has_no_colour(page: playwright.Page) -> None:
    rows = {r.locator("th").inner_text(): r for r in page.locator(".changes tbody tr").all()}
    small = rows["Spatial Relation"]
    assert "too few to tell" in small.inner_text() and small.locator("svg.clear").count() == 0
    assert rows["Jigsaw"].locator("svg.clear").count() == 1
    assert rows["Relative Depth"].locator("svg.clear").count() == 0


def test_answers_sort_and_the_means_stay_last(page: playwright.Page) -> None:
    table = page.locator("table.sortable").first
    heading = table.locator("th", has_text="Fixed")
    names = table.locator("tbody th")
    orders = []
    for how in ("descending", "ascending"):
        heading.locator("button").press("Enter")
        assert heading.get_attribute("aria-sort") == how
        orders.append(names.all_inner_texts())
    first, second = orders
    assert first[0] == second[2] == "Jigsaw"
    assert [n.lower() for n in first[3:]] == [n.lower() for n in second[3:]] == ["micro", "macro"]
