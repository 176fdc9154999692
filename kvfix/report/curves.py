"""The page's figure: score against stage, one small panel per task, as numbers for an SVG.

A panel is 320 wide; stages stand from left to right as an image passes through the model: reference
and vision encoder, projector, then the layers of the language model. `templates/curves.j2` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvfix.report.stages import LAYERED, RANDOM, Panel, Score
from kvfix.runs.rows import READOUT

WIDTH, TOP, BOTTOM = 320.0, 12.0, 132.0  # of the plot's area in the panel's own units
LEFT, RIGHT = 30.0, 312.0
STEP = 27.0  # between the stages before the language model
OUTSIDE = {"reference": "reference encoder", "vision": "vision encoder", "projector": "projector"}
SHORT = {"reference": "ref", "vision": "vis", "projector": "proj"}


@dataclass(frozen=True)
class Mark:
    """A stage outside the language model, with its interval."""

    site: str
    short: str
    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """A site over the layers: points of a polyline, and of the band of its interval."""

    site: str  # or `control`
    points: str
    band: str


@dataclass(frozen=True)
class Stage:
    """What is shown when a reader points at a stage."""

    x: float
    width: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One panel, ready to be drawn."""

    panel: Panel
    marks: tuple[Mark, ...]
    lines: tuple[Line, ...]
    stages: tuple[Stage, ...]
    ticks: tuple[tuple[float, str], ...]  # y
    layers: tuple[tuple[float, str], ...]  # x
    chance: float | None  # y
    ceiling: float | None  # y, None where it lies above the panel
    best: tuple[float, float] | None  # x, y


def curves(panels: Sequence[Panel]) -> list[Curve]:
    """The probes' headline panels; readouts of questions are tables."""
    return [_curve(p) for p in panels if p.headline and p.staged and p.task != READOUT]


def _curve(panel: Panel) -> Curve:
    outside = [(site, s) for site in OUTSIDE if (s := panel.at(site)) and s.value is not None]
    first = LEFT + 14 + STEP * len(outside) + (8 if outside else 0)
    gap = (RIGHT - 8 - first) / max(panel.n_layers - 1, 1)
    at = {site: LEFT + 14 + STEP * i for i, (site, _) in enumerate(outside)}
    top = _top(panel)

    def x(layer: int) -> float:
        return round(first + gap * layer, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * min(max(value / top, 0.0), 1.0), 1)

    lines = [_line(site, panel.curve(site), x, y) for site in reversed(LAYERED)]
    lines.insert(0, _line("control", panel.curve("value", RANDOM), x, y, band=False))
    best = panel.best
    peak = panel.at("value", best.layer) if best is not None else None
    every = max(1, -(-panel.n_layers // 8))
    return Curve(
        panel=panel,
        marks=tuple(
            Mark(
                site,
                SHORT[site],
                at[site],
                y(s.value or 0.0),
                None if s.low is None else y(s.low),
                None if s.high is None else y(s.high),
            )
            for site, s in outside
        ),
        lines=tuple(line for line in lines if line.points),
        stages=(
            *(Stage(at[site], STEP, f"{OUTSIDE[site]} {_said(s)}") for site, s in outside),
            *(Stage(x(n), min(gap, STEP), _layer_text(panel, n)) for n in range(panel.n_layers)),
        ),
        ticks=tuple((y(v), f"{v:g}") for v in (0.0, top / 2, top)),
        layers=tuple((x(n), str(n)) for n in range(0, panel.n_layers, every)),
        chance=None if panel.chance is None else y(panel.chance),
        ceiling=y(panel.ceiling) if panel.ceiling is not None and panel.ceiling <= top else None,
        best=None
        if peak is None or peak.layer is None or peak.value is None
        else (x(peak.layer), y(peak.value)),
    )


def _top(panel: Panel) -> float:
    """A round number above all that is drawn."""
    ends = [e for s in panel.scores.values() for e in (s.value, s.high) if e is not None]
    highest = max([*ends, panel.chance or 0.0, 1e-3])
    return next(t for t in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1e9) if t >= highest)


def _line(site: str, scores: Sequence[Score], x, y, *, band: bool = True) -> Line:
    known = [(s, s.value) for s in scores if s.value is not None and s.layer is not None]
    points = " ".join(f"{x(s.layer)},{y(value)}" for s, value in known)
    ends = [s for s, _ in known if s.low is not None and s.high is not None]
    around = [f"{x(s.layer)},{y(s.high)}" for s in ends]
    around += [f"{x(s.layer)},{y(s.low)}" for s in reversed(ends)]
    return Line(site, points, " ".join(around) if band and site == "value" else "")


def _layer_text(panel: Panel, layer: int) -> str:
    said = [f"{site} {_said(s)}" for site in LAYERED if (s := panel.at(site, layer))]
    random = panel.at("value", layer, RANDOM)
    return "; ".join([f"layer {layer}: {said[0]}" if said else f"layer {layer}", *said[1:]]) + (
        f"; random weights {_said(random)}" if random else ""
    )


def _said(score: Score) -> str:
    if score.value is None:
        return "–"
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
