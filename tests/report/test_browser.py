"""The report in a real browser: read, flipped, sorted and filtered by mouse and keyboard.

Marked `browser`: needs Debian's chromium, and `pip install -e '.[test,browser]'`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import launch

if TYPE_CHECKING:
    from playwright import sync_api as playwright

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
QUIET = ("disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync")
WIDTHS = {1400: 900, 1024: 768, 390: 844}


@pytest.fixture(scope="module")
def report(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diagnosis of a tiny random model."""
    out = tmp_path_factory.mktemp("browser") / "run"
    words = ["--only", "flow", "--only", "surfacing", "--limit", "4", "--out", out]
    ended = launch("diagnose", "--model", checkpoint("llava_onevision"), *words)
    assert ended.code == 0, ended.err
    return out / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--no-first-run", *(f"--{name}" for name in QUIET)]
        with driver.chromium.launch(executable_path=CHROMIUM, args=arguments) as opened:
            yield opened


@pytest.fixture
def page(browser: playwright.Browser, report: Path) -> Iterator[playwright.Page]:
    """The report at 1400 pixels; no error on the console and no request may come of a test."""
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        yield from watched(context, report)


def watched(context: playwright.BrowserContext, file: Path) -> Iterator[playwright.Page]:
    shown, wrong = context.new_page(), list[str]()
    shown.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    shown.on("pageerror", lambda e: wrong.append(str(e)))
    shown.on("request", lambda r: None if r.url.startswith("data:") else wrong.append(r.url))
    shown.goto(file.as_uri())
    yield shown
    assert wrong == [file.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_screen_holds_verdict_figure_and_command(
    width: int, scheme: str, browser: playwright.Browser, report: Path, tmp_path: Path
) -> None:
    size = {"width": width, "height": WIDTHS[width]}
    with browser.new_context(viewport=size, color_scheme=scheme) as context:
        for page in watched(context, report):
            page.screenshot(path=report.with_name(f"screen-{width}-{scheme}.png"))
            for part in (".verdict dd", ".command code", "svg.curve"):
                box = page.locator(part).first.bounding_box()
                assert box is not None and box["y"] + box["height"] <= WIDTHS[width], part
            assert page.title().startswith("llava_onevision")
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(wide) == 0
            hidden = """[...document.querySelectorAll("table")].filter((t) =>
                t.scrollWidth > t.parentElement.clientWidth &&
                getComputedStyle(t.parentElement).overflowX !== "auto").length"""
            assert page.evaluate(hidden) == 0


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


def test_without_scripts_everything_is_there(browser: playwright.Browser, report: Path) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(report.as_uri())
        shots = page.locator(".flip").first.locator("figure")
        assert shots.count() > 1 and all(shots.nth(i).is_visible() for i in range(shots.count()))


def test_axe_finds_no_serious_fault(page: playwright.Page) -> None:
    import axe_core_python

    script = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    found = page.evaluate("axe.run()")["violations"]
    grave = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not grave, [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in grave]


def test_the_page_prints_on_few_full_pages(page: playwright.Page, tmp_path: Path) -> None:
    file = tmp_path / "report.pdf"
    page.pdf(path=file, format="A4")
    text = subprocess.run(["pdftotext", "-layout", file, "-"], capture_output=True, text=True)
    pages = text.stdout.split("\f")[:-1]
    assert 1 <= len(pages) <= 12 and all(p.strip() for p in pages), len(pages)


def test_nothing_from_data_runs(browser: playwright.Browser, tmp_path: Path) -> None:
    """Script and HTML in a question, an option, an answer, an id, a model's name and a command."""
    from test_asked import answer, write

    from kvfix.report.html import write_report

    attack = "</title></script><script>window.hit=1</script><img src=x onerror=window.hit=2>"
    row = replace(answer(attack, correct=0, text=attack, subtask=attack), options=(attack, attack))
    folder = write(tmp_path / "run", [row])
    model = {"id": attack, "adapter": attack, "family": attack}
    run = {"kind": "diagnose", "model": model, "command": attack, "notes": [attack], "results": []}
    (folder / "run.json").write_text(json.dumps(run))
    with browser.new_context() as context:
        for page in watched(context, write_report(folder)):
            page.locator(".asked summary").first.press("Enter")
            assert page.evaluate("window.hit") is None
            assert attack in page.locator(".asked summary").first.inner_text()
            assert page.locator("script").count() == 1
