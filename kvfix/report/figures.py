"""Layer curves and head maps of a run, as SVG and PNG.

Drawn on `matplotlib.figure.Figure` with its own Agg and SVG canvases: pyplot, its windows and the
user's style are not involved. Colours are Okabe and Ito's, each with its own marker as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfix.report.stages import LAYERED, RANDOM, Panel, Score, headline_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# html.py swaps these for the page's colours, so each stands for one thing only.
PAPER, INK, MUTED, RULE, CONTROL = "#ffffff", "#1f2430", "#626a78", "#d9dde3", "#8b93a1"
COLOURS = {
    "value": "#0072b2",
    "key": "#d55e00",
    "hidden": "#009e73",
    "vision": "#1f2430",
    "projector": "#cc79a7",
    "reference": "#e69f00",
}
MARKERS = {
    "value": "o",
    "key": "s",
    "hidden": "^",
    "vision": "s",
    "projector": "D",
    "reference": "*",
}
TITLE = 48  # characters of a title; a longer one leaves its axes no room
OUTSIDE = ("reference", "vision", "projector")
SHORT = {"reference": "ref.", "vision": "vision", "projector": "proj."}


def layer_curves(run: dict[str, Any], folder: Path) -> list[Path]:
    """A panel a (task, dataset): score against stage, with intervals, controls, chance and ceiling.

    Writes `layer_curves.svg` and `.png` into a folder, made if missing; none for a run without
    results.
    """
    shown = headline_panels(run)
    if not shown:
        return []
    with _style():
        figure, axes, legend_y = _grid(len(shown), row_height=2.75)
        for axis, panel in zip(axes, shown, strict=True):
            _draw_panel(axis, panel)
        handles: dict[str, Any] = {}
        for axis in axes:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        order = _legend_order(handles)
        figure.legend(
            [handles[n] for n in order],
            order,
            loc="upper center",
            bbox_to_anchor=(0.5, legend_y),
            ncols=-(-len(order) // 2),
        )
        return _save(figure, folder, "layer_curves")


def head_maps(run: dict[str, Any], folder: Path) -> list[Path]:
    """A heat map a (task, dataset, site) of the score by layer and KV head.

    Writes `head_maps.svg` and `.png` likewise; none for a run without scores of single heads.
    """
    import numpy as np

    shown = [
        (panel, site)
        for panel in headline_panels(run)
        for site in LAYERED
        if any(where == site for where, _, _ in panel.heads)
    ]
    if not shown:
        return []
    with _style():
        figure, axes, _ = _grid(len(shown), row_height=2.3, legend=False)
        for axis, (panel, site) in zip(axes, shown, strict=True):
            cells = {(la, h): s for (where, la, h), s in panel.heads.items() if where == site}
            map_HL = np.full((1 + max(h for _, h in cells), 1 + max(la for la, _ in cells)), np.nan)
            for (layer, head), score in cells.items():
                map_HL[head, layer] = np.nan if score.value is None else score.value
            mesh = axis.pcolormesh(map_HL, cmap="cividis", edgecolors="face", linewidth=0.2)
            bar = figure.colorbar(mesh, ax=axis, pad=0.02, aspect=14)
            bar.outline.set_visible(False)
            _title(axis, panel.name, f"{site} · {panel.dataset} · {panel.metric}")
            for ticks, count in (
                (axis.set_xticks, map_HL.shape[1]),
                (axis.set_yticks, len(map_HL)),
            ):
                at = _ticks(count)
                ticks([i + 0.5 for i in at], [str(i) for i in at])
            axis.set_xlabel("layer")
            axis.set_ylabel("KV head")
            axis.spines[:].set_visible(False)
        return _save(figure, folder, "head_maps")


def _draw_panel(axis: Axes, panel: Panel) -> None:
    layers = max(panel.n_layers, 2)
    outside = [s for s in OUTSIDE if panel.at(s) is not None]
    # The stages before the LM get a fixed share of the width, however many layers there are.
    step = (0.22 if len(outside) < 3 else 0.24) * (layers - 1)
    at = {s: -step * (len(outside) - i) for i, s in enumerate(outside)}
    left, right = min([0.0, *at.values()]) - 0.3 * step, layers - 1 + 0.25 * step
    for name, dashes in (("chance", (0, (1, 0))), ("ceiling", (0, (6, 2, 1, 2)))):
        xs, ys = _bound(panel, name, left, right)
        if xs:
            axis.plot(xs, ys, color=MUTED, linewidth=0.9, linestyle=dashes, label=name, zorder=1)
    position = panel.at("position")
    if position is not None and position.value is not None:
        ys = [position.value] * 2
        axis.plot([left, right], ys, color=CONTROL, lw=1.5, ls=":", label="position only")
    _line(
        axis, panel.curve("value", RANDOM), "random weights (value)", CONTROL, "", "--", band=False
    )
    for site in reversed(LAYERED):
        _line(axis, panel.curve(site), site, COLOURS[site], MARKERS[site], "-", band=True)
    for site in outside:
        score = panel.at(site)
        if score is not None and score.value is not None:
            _marker(axis, at[site], score, site)
    best = panel.best
    drawn = None if best is None else panel.at("value", best.layer)
    if drawn is not None and drawn.layer is not None and drawn.value is not None:
        at_best, blue = ([drawn.layer], [drawn.value]), COLOURS["value"]
        axis.plot(*at_best, "o", ms=10.5, mfc="none", mec=blue, mew=1.3, label="best value layer")
    if outside:
        axis.axvline(-0.5 * step, color=RULE, linewidth=0.9, zorder=0)
    ticks = _ticks(panel.n_layers)
    axis.set_xticks([*at.values(), *ticks], [*(SHORT[s] for s in outside), *map(str, ticks)])
    axis.set_xlim(left, right)
    axis.margins(y=0.08)
    axis.grid(axis="y", color=RULE, linewidth=0.6)
    _title(axis, panel.name, f"{panel.dataset} · {panel.metric} · n = {panel.n}")


def _line(
    axis: Axes, curve: list[Score], label: str, colour: str, marker: str, style: str, *, band: bool
) -> None:
    points = [(s.layer, s.value) for s in curve if s.layer is not None and s.value is not None]
    if not points:
        return
    wide, crowded = label == "value", len(points) > 16
    axis.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=colour,
        linestyle=style,
        linewidth=2.2 if wide else 1.4,
        marker=marker or None,
        markersize=(4.5 if wide else 3.2) * (0.6 if crowded else 1.0),
        markeredgewidth=0,
        label=label,
        zorder=4 if wide else 3,
    )
    ends = [
        (s.layer, s.low, s.high)
        for s in curve
        if s.layer is not None and s.low is not None and s.high is not None
    ]
    if band and ends:
        xs, low, high = ([e[i] for e in ends] for i in range(3))
        axis.fill_between(xs, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)


def _bound(panel: Panel, name: str, left: float, right: float) -> tuple[list[float], list[float]]:
    """Chance or ceiling over the value layers, flat outside of them; empty where unknown."""
    points = [
        (float(s.layer), y)
        for s in panel.curve("value")
        if s.layer is not None and (y := getattr(s, name)) is not None
    ]
    if not points and (y := getattr(panel, name)) is not None:
        points = [(0.0, y)]
    if not points:
        return [], []
    points = [(left, points[0][1]), *points, (right, points[-1][1])]
    return [x for x, _ in points], [y for _, y in points]


def _marker(axis: Axes, x: float, score: Score, site: str) -> None:
    value, low, high = score.value or 0.0, score.low, score.high
    # A percentile interval may miss its own point estimate; matplotlib takes no negative length.
    bars = None if low is None or high is None else [[max(value - low, 0)], [max(high - value, 0)]]
    axis.errorbar(
        [x],
        [value],
        yerr=bars,
        fmt=MARKERS[site],
        color=COLOURS[site],
        markersize=8 if site == "reference" else 5.5,
        markeredgewidth=0,
        elinewidth=1.3,
        capsize=2.5,
        label=site,
        zorder=5,
    )


def _title(axis: Axes, task: str, below: str) -> None:
    title, below = (t if len(t) <= TITLE else f"{t[: TITLE - 1]}…" for t in (task, below))
    axis.set_title(title.replace("_", " "), loc="left", pad=17, fontweight="bold")
    axis.annotate(
        below, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", color=MUTED
    )


def _ticks(count: int) -> list[int]:
    """At most five or six round layer numbers from 0, the last layer always among them."""
    if count < 1:
        return []
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 10**6) if (count - 1) / s <= 5)
    ticks = [i for i in range(0, count, step) if count - 1 - i >= 0.6 * step]
    return [*ticks, count - 1]


def _legend_order(known: Iterable[str]) -> list[str]:
    """Two rows, sites above and controls below; matplotlib fills a legend column by column."""
    lower = ("best value layer", "random weights (value)", "position only", "chance", "ceiling")
    rows = [[n for n in names if n in known] for names in ((*OUTSIDE, *LAYERED), lower)]
    return [n for column in zip_longest(*rows) for n in column if n is not None]


def _grid(
    count: int, *, row_height: float, legend: bool = True
) -> tuple[Figure, list[Axes], float]:
    """A figure 10 inches wide (1000 px), `count` axes in rows of three, and the legend's top."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(count, 3)
    rows = -(-count // columns)
    height = row_height * rows + (0.55 if legend else 0.0)
    top = (height - 0.55) / height if legend else 1.0
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, top), w_pad=0.09, h_pad=0.09)
    figure = Figure(figsize=(10, height), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count], 1 - 0.02 / height


@contextmanager
def _style() -> Iterator[None]:
    """Our own rcParams over matplotlib's defaults; the user's come back at the end."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        ours: dict[str, Any] = {
            "text.parse_math": False,  # a `$` in a data set's name is a dollar
            "svg.fonttype": "none",
            "svg.hashsalt": "kvfix",
            "font.size": 8.5,
            "text.color": INK,
            "axes.labelcolor": MUTED,
            "axes.titlesize": 9.5,
            "axes.titlecolor": INK,
            "axes.edgecolor": RULE,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.axisbelow": True,
            "xtick.color": RULE,
            "ytick.color": RULE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "ytick.major.size": 0,
            "xtick.major.size": 3,
            "legend.frameon": False,
            "legend.labelcolor": INK,
            "figure.facecolor": PAPER,
            "axes.facecolor": "none",
        }
        params: Any = matplotlib.rcParams
        params.update(ours)
        yield


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.set_layout_engine("none")  # what was laid out stays
    figure.savefig(paths[1], dpi=200)
    return paths
