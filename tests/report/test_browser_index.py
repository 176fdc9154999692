"""The index of many runs in a real browser: sorted by mouse and keyboard, and its links lead on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import watched

if TYPE_CHECKING:
    from playwright import sync_api as playwright

pytestmark = pytest.mark.browser


def test_runs_sort_by_model_adapter_and_score(
    browser: playwright.Browser, index_page: Path
) -> None:
    with watched(browser, index_page) as page:
        runs = page.locator("tbody th")
        for column, first, last in (
            ("Adapter", "fixed", None),
            ("davis2017", "fixed", "run"),
        ):
            heading = page.locator("th", has_text=column)
            heading.locator("button").press("Enter")
            assert heading.get_attribute("aria-sort") == "descending"
            assert runs.first.inner_text() == first
            assert last is None or runs.last.inner_text() == last
            heading.locator("button").click()
            assert heading.get_attribute("aria-sort") == "ascending"


def test_a_link_leads_to_the_report_of_its_run(
    browser: playwright.Browser, index_page: Path, report_page: Path
) -> None:
    links = []
    with watched(browser, index_page) as page:
        links = [a.get_attribute("href") for a in page.locator("tbody a").all()]
    assert links[0] is not None
    assert (index_page.parent / links[0]).resolve() == report_page.resolve()
