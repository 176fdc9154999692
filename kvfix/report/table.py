"""What the terminal shows at the end of a run: the summary table and the findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvfix.findings import Finding
from kvfix.report.stages import Panel, Score, clean, headline_panels

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


def summary(run: dict[str, Any]) -> Table:
    """One row for each task and dataset, at most 80 columns wide.

    A cell holds the score, its interval and the layer: `L5` is layer 5. A star after it says that
    the layer was chosen on the units that score it, so that the score is optimistic.
    """
    from rich import box
    from rich.table import Table

    shown = [p for p in headline_panels(clean(run)) if p.staged]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    # Only names may wrap, at spaces: a number that breaks over two lines is misread.
    table.add_column("task,\ndataset, metric", overflow="fold", min_width=14, max_width=14)
    numbers = ("vision", "proj.", "best\nvalue", "last\nvalue", "random\nvalue")
    for name in (*numbers, "position\nonly", "chance,\nceil.", "n"):
        style = "bold" if name == "best\nvalue" else ""
        table.add_column(name, justify="right", no_wrap=True, style=style)
    for panel in shown:
        table.add_row(*_row(panel))
    if any(p.best is not None and not p.best.held_out for p in shown):
        table.caption = "* best layer chosen on the units that score it (optimistic)"
        table.caption_justify = "left"
    return table


def findings(run: dict[str, Any]) -> RenderableType:
    """The findings as a bulleted list, each with its number, interval and n."""
    from rich.table import Table
    from rich.text import Text

    bullets = Table.grid(padding=(0, 1))
    bullets.add_column(vertical="top")
    bullets.add_column(overflow="fold")
    for finding in map(Finding.from_json, clean(run).get("findings") or []):
        sentence = Text(finding.text)
        if finding.numbers:
            sentence.append(f"\n{finding.numbers}", style="dim")
        bullets.add_row("•", sentence)
    return bullets if bullets.row_count else Text("No finding.", style="dim")


def _row(panel: Panel) -> list[Text]:
    from rich.text import Text

    best, last, random = panel.best, panel.last, panel.best_random
    star = "" if best is None or best.held_out else "*"
    bounds = ["–" if b is None else f"{b:.3f}" for b in (panel.chance, panel.ceiling)]
    return [
        Text(f"{panel.name.replace('_', ' ')} {panel.dataset}, {panel.metric}"),
        _cell(panel.at("vision")),
        _cell(panel.at("projector")),
        _cell(best, star=star, layer=True),
        _cell(last, layer=True),
        _cell(random, band=False),
        _cell(panel.at("position"), band=False),
        Text("\n".join(bounds)),
        Text(str(panel.n)),
    ]


def _cell(score: Score | None, *, layer: bool = False, star: str = "", band: bool = True) -> Text:
    from rich.text import Text

    if score is None or score.value is None:
        return Text("–", style="dim")
    text = Text(f"{score.value:.3f}")
    if band and score.low is not None and score.high is not None:
        text.append(f"\n{_short(score.low)}–{_short(score.high)}", style="dim")
    if layer and score.layer is not None:
        text.append(f"\nL{score.layer}{star}", style="dim")
    return text


def _short(value: float) -> str:
    """Two decimals without the leading zero, to save a column: .61, 1.0, -.02."""
    text = f"{value:.2f}"
    return "1.0" if text == "1.00" else text.replace("0.", ".", 1) if abs(value) < 1 else text
