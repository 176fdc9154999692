"""A page in a real browser: opened under watch, and what must be true of every page.

Needs Debian's chromium and poppler-utils, and `pip install -e '.[test,browser]'`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright import sync_api as playwright

CHROMIUM = "/usr/bin/chromium"
QUIET = ("disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync")
WIDTHS = {1400: 900, 1024: 768, 390: 844}  # and heights
ATTACK = "</title></script><script>window.hit=1</script><img src=x onerror=window.hit=2>\x1b[31m"
# Of every part that scrolls sideways: whether its scroll bar takes up room, so that it is seen.
_BARS = """[...document.querySelectorAll("body *")].filter((part) => {
    const hidden = part.scrollWidth > part.clientWidth + 1 && part.clientWidth > 0;
    const scrolls = getComputedStyle(part).overflowX;
    if (!hidden || getComputedStyle(part).display === "inline") return false;
    if (scrolls === "visible") return part.tagName === "TABLE";
    const border = part.offsetHeight - part.clientHeight;
    return !(scrolls === "auto" || scrolls === "scroll") || border < 6;
}).map((part) => part.outerHTML.slice(0, 200))"""
_WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextmanager
def opened() -> Iterator[playwright.Browser]:
    """Chromium, which shows its scroll bars."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--no-first-run", *(f"--{name}" for name in QUIET)]
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=arguments, ignore_default_args=["--hide-scrollbars"]
        )
        with chromium:
            yield chromium


@contextmanager
def watched(
    browser: playwright.Browser, file: Path, *, width: int = 1400, scheme: Any = "light"
) -> Iterator[playwright.Page]:
    """A page from disk; no error on the console and no request may come of a test."""
    size: Any = {"width": width, "height": WIDTHS[width]}
    with browser.new_context(viewport=size, color_scheme=scheme) as context:
        page, wrong = context.new_page(), list[str]()
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith("data:") else wrong.append(r.url))
        page.goto(file.as_uri())
        yield page
        assert wrong == [file.as_uri()]


def on_first_screen(page: playwright.Page, *parts: str) -> None:
    """Each part ends above the fold, and no part of the page is out of sight sideways."""
    assert page.viewport_size is not None
    for part in parts:
        box = page.locator(part).first.bounding_box()
        assert box is not None and box["y"] + box["height"] <= page.viewport_size["height"], part
    nothing_out_of_sight(page)


def nothing_out_of_sight(page: playwright.Page) -> None:
    """The page does not scroll sideways; what does inside it has a scroll bar that is seen."""
    assert page.evaluate(_WIDER) == 0
    assert page.evaluate(_BARS) == []


def grave_faults(page: playwright.Page) -> list[tuple[str, list[str]]]:
    """What axe-core calls serious or critical: rule, and the first elements."""
    import axe_core_python

    script = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    found = page.evaluate("axe.run()")["violations"]
    return [
        (v["id"], [n["html"][:200] for n in v["nodes"][:3]])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


def printed_pages(page: playwright.Page, file: Path) -> list[str]:
    """The text of each page of the PDF that the browser prints."""
    page.pdf(path=file, format="A4")
    text = subprocess.run(["pdftotext", "-layout", file, "-"], capture_output=True, text=True)
    return text.stdout.split("\f")[:-1]
