"""What is true of every page in a real browser: report.html, compare.html and index.html."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import (
    WIDTHS,
    grave_faults,
    nothing_out_of_sight,
    on_first_screen,
    printed_pages,
    watched,
)

if TYPE_CHECKING:
    from playwright import sync_api as playwright

pytestmark = pytest.mark.browser

# What the first screen holds.
PAGES = {
    "report": (".verdict div:last-child", ".command code", "svg.curve"),
    "compare": (".verdict div:last-child", ".command code", "table.changes"),
    "index": ("table.sortable",),
}


@pytest.fixture(params=PAGES)
def file(request: pytest.FixtureRequest) -> Path:
    """Each page in turn."""
    return request.getfixturevalue(f"{request.param}_page")


def _parts(file: Path) -> tuple[str, ...]:
    return PAGES[file.stem]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_screen_holds_what_a_reader_came_for(
    width: int, scheme: str, browser: playwright.Browser, file: Path
) -> None:
    with watched(browser, file, width=width, scheme=scheme) as page:
        page.screenshot(path=file.with_name(f"{file.stem}-{width}-{scheme}.png"))
        on_first_screen(page, *_parts(file))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_out_of_sight_when_everything_is_open(
    width: int, browser: playwright.Browser, file: Path
) -> None:
    with watched(browser, file, width=width) as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        nothing_out_of_sight(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(scheme: str, browser: playwright.Browser, file: Path) -> None:
    with watched(browser, file, scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        assert not grave_faults(page)


def test_the_page_prints_on_few_full_pages(
    browser: playwright.Browser, file: Path, tmp_path: Path
) -> None:
    with watched(browser, file) as page:
        pages = printed_pages(page, tmp_path / "page.pdf")
        assert 1 <= len(pages) <= 12 and all(p.strip() for p in pages), len(pages)


def test_without_scripts_everything_is_there(browser: playwright.Browser, file: Path) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(file.as_uri())
        assert page.locator("[hidden]").count() == 0
        for part in ("h2", ".command", ".flip figure", ".asked details", ".card"):
            for found in page.locator(f"{part}:not(details:not([open]) *)").all():
                assert found.is_visible()
