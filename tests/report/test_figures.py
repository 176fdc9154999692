"""Figures and curves hold the run's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake_runs import fake_run
from PIL import Image

from kvfix.report import figures
from kvfix.report.curves import BOTTOM, TOP, curves
from kvfix.report.stages import panels


def test_figures_are_written_and_leave_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.rcParams["font.size"] = 31.0
    before = dict(matplotlib.rcParams)
    run = fake_run()
    run["results"][0]["dataset"] = "$\\frac{$"  # no formula
    paths = figures.layer_curves(run, tmp_path / "figures")
    assert dict(matplotlib.rcParams) == before
    matplotlib.rcParams["font.size"] = 10.0
    assert [p.suffix for p in paths] == [".svg", ".png"]
    svg = paths[0].read_text()
    assert all(word in svg for word in ("vision", "projector", "random weights (value)", "ceiling"))
    assert "$\\frac{$" in svg
    with Image.open(paths[1]) as png:
        assert png.width >= 1000
    assert figures.head_maps(run, tmp_path) == []
    assert figures.layer_curves({"results": []}, tmp_path) == []


def test_curve_points_are_the_runs_numbers() -> None:
    from matplotlib.figure import Figure

    run = fake_run()
    axis = Figure().subplots()
    figures._draw_panel(axis, panels(run)[0])
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axis.lines}
    rows = [r for r in run["results"] if r["task"] == "foreground_segmentation"]
    for site, control, label in (
        ("value", None, "value"),
        ("key", None, "key"),
        ("value", "random_weights", "random weights (value)"),
    ):
        same = [r for r in rows if (r["site"], r["control"]) == (site, control)]
        assert drawn[label] == [r["value"] for r in same]
    assert drawn["best value layer"] == [drawn["value"][4]]
    assert set(drawn["chance"]) == {0.11} and set(drawn["ceiling"]) == {0.9}


def test_the_pages_curves_stand_where_the_numbers_are() -> None:
    shown = panels(fake_run())
    for curve, panel in zip(curves(shown), shown, strict=True):
        top = float(curve.ticks[-1][1])

        def value(y: float, top: float = top) -> float:
            return top * (BOTTOM - y) / (BOTTOM - TOP)

        [line] = [drawn for drawn in curve.lines if drawn.site == "value"]
        drawn = [value(float(point.split(",")[1])) for point in line.points.split()]
        close = top / (BOTTOM - TOP)  # a tenth of a unit is the last digit that is written
        assert np.allclose(drawn, [s.value for s in panel.curve("value")], atol=close / 10)
        band = [value(float(point.split(",")[1])) for point in line.band.split()]
        ends = [s.high for s in panel.curve("value")] + [s.low for s in panel.curve("value")][::-1]
        assert np.allclose(band, ends, atol=close / 10)
        assert curve.chance is not None and np.isclose(value(curve.chance), 0.11, atol=close / 10)
        assert curve.best is not None and panel.best is not None
        at_best = panel.at("value", panel.best.layer)
        assert at_best is not None
        assert np.isclose(value(curve.best[1]), at_best.value, atol=close / 10)
        texts = [stage.text for stage in curve.stages]
        assert len(texts) == len(curve.marks) + panel.n_layers
        said = zip(panel.curve("value"), texts[-8:], strict=True)
        assert all(f"{score.value:.3f}" in text for score, text in said)
