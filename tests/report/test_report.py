"""The report shows the run's numbers, all of them, and nothing that a run could smuggle in."""

from __future__ import annotations

import html as stdlib_html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kvfix.report import figures, table
from kvfix.report.html import write_report
from kvfix.report.stages import headline_panels, panels

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=http://evil.test/x onerror=a()> | `x` [a](http://b)"
)
LAYERS = 8
TASKS = {
    "foreground_segmentation": ("scenes", "IoU", 0.62),
    "cosegmentation": ("scenes", "Jaccard", 0.51),
    "semantic_segmentation": ("scenes", "IoU", 0.33),
    "referring_segmentation": ("scenes", "IoU", 0.29),
    "semantic_correspondence": ("spair71k", "PCK@0.1", 0.37),
    "temporal_correspondence": ("davis2017", "J&F", 0.55),
}
BY_TEXT = ("semantic_segmentation", "referring_segmentation")


def fake_run(*, heads: bool = False) -> dict[str, Any]:
    """A run of six tasks and eight layers, curves that rise and fall, both controls."""
    rng = np.random.default_rng(0)
    results: list[dict[str, Any]] = []
    for task, (dataset, metric, level) in TASKS.items():
        same = {"task": task, "dataset": dataset, "metric": metric, "split": "test", "n": 60}
        same |= {"cluster": "image", "clusters": 24, "chance": 0.11, "ceiling": 0.9}

        def add(
            site: str,
            layer: int | None,
            value: float,
            *,
            same: dict[str, Any] = same,
            control: str | None = None,
            head: int | None = None,
            **other: Any,
        ) -> None:
            value = float(np.clip(value + rng.normal(0, 0.008), 0, 1))
            spread = float(0.03 + 0.02 * rng.random())
            row = {"site": site, "layer": layer, "head": head, "control": control, "value": value}
            results.append({**same, **row, "ci": [value - spread, value + spread], **other})

        if task not in BY_TEXT:
            add("vision", None, level)
            add("projector", None, level - 0.1)
            add("vision", None, 0.24, control="random_weights")
        for layer in range(LAYERS):
            shape = 0.13 * np.sin(np.pi * (layer + 0.6) / LAYERS)
            add("value", layer, level - 0.12 + shape)
            add("key", layer, level - 0.17 + 0.8 * shape)
            add("hidden", layer, level - 0.14 + 0.7 * shape)
            add("value", layer, 0.2 + 0.004 * layer, control="random_weights")
            for head in range(2 if heads else 0):
                add("value", layer, level - 0.2 + shape + 0.05 * head, head=head)
        add("position", None, 0.17)
    return {
        "kvfix": "0.1.0",
        "kind": "diagnose",
        "command": "kvfix diagnose --model nano/llava_onevision --data davis2017=/data/DAVIS",
        "started": "2026-03-01T09:30:00+00:00",
        "seconds": 71.4,
        "seed": 0,
        "complete": True,
        "reference_encoder": None,
        "model": {
            "id": "nano/llava_onevision",
            "family": "llava_onevision",
            "revision": None,
            "sha256": "a3" * 32,
            "adapter": None,
            "adapter_sha256": None,
            "dtype": "float32",
        },
        "versions": {
            "python": "3.12.1",
            "torch": "2.9.0",
            "transformers": "5.23.0",
            "peft": "0.21",
        },
        "data": [
            {"dataset": d, "task": t, "split": "test", "n": 60, "sha256": "0f" * 32}
            for t, (d, _, _) in TASKS.items()
        ],
        "results": results,
        "findings": findings(),
        "left_out": [
            {"task": "cosegmentation", "id": "scenes/test/17", "why": "17.png: truncated image"}
        ],
        "overlays": [],
    }


def findings() -> list[dict[str, Any]]:
    """A peak of each task in a sentence with its numbers, and one finding without them."""
    found: list[dict[str, Any]] = []
    for task, (dataset, metric, level) in TASKS.items():
        low, high = level - 0.041, level + 0.043
        found.append(
            {
                "id": "flow.peak",
                "text": f"{task.replace('_', ' ').capitalize()}: image values are best at layer 4 "
                f"of 8 (chosen on the other half of the units): {metric} {level:.3f} "
                f"[{low:.3f}, {high:.3f}] (n = 30); chance 0.110, ceiling of the grid 0.900.",
                "task": task,
                "dataset": dataset,
                "layer": 4,
                "value": level,
                "ci": [low, high],
                "n": 30,
                "percent": False,  # the sentence holds them
            }
        )
    last = {"id": "flow.projector", "text": "The projector loses a sixth.", "task": task}
    return [*found, {**last, "value": -0.101, "ci": [-0.142, -0.063], "n": 60}]


def save(run: dict[str, Any], folder: Path) -> Path:
    """Writes run.json, and a picture for each overlay that names a plain file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder


def add_overlay(run: dict[str, Any], folder: Path, *, name: str = "figures/overlays/a.png") -> None:
    """An overlay of one pixel, on disk and in the run."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1, 1)).save(folder / name)
    same = {"task": "foreground_segmentation", "dataset": "scenes", "id": "u1", "caption": "a cat"}
    run["overlays"].append({**same, "site": "value", "layer": 4, "score": 0.5, "file": name})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished report."""
    folder, run = tmp_path_factory.mktemp("run"), fake_run(heads=True)
    add_overlay(run, folder)
    write_report(save(run, folder))
    return folder


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run in which every text is hostile."""

    def poison(item: Any) -> Any:
        if isinstance(item, str):
            return item if item in KEPT else HOSTILE
        if isinstance(item, list):
            return [poison(i) for i in item]
        if isinstance(item, dict):
            return {k: poison(v) for k, v in item.items()}
        return item

    folder, run = tmp_path_factory.mktemp("attacked"), fake_run()
    add_overlay(run, folder)
    run = poison(run)
    run["versions"] = {HOSTILE: HOSTILE}
    run["findings"][-1]["n"] = HOSTILE
    Image.new("RGB", (1, 1)).save(folder.parent / "secret.png")  # a PNG, but not this run's
    (folder / "figures" / "link.png").symlink_to(folder.parent / "secret.png")
    files = ("../secret.png", str(folder.parent / "secret.png"), "figures/link.png", "run.json")
    run["overlays"] += [{**run["overlays"][0], "file": f} for f in (*files, HOSTILE)]
    write_report(save(run, folder))
    return folder


KEPT = {
    "vision",
    "projector",
    "hidden",
    "key",
    "value",
    "position",
    "random_weights",
    "report_half",
}
KEPT |= {"figures/overlays/a.png"}


def text_of(page: str) -> str:
    """The page without tags and figures."""
    page = re.sub(r"<(svg|style|script)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(stdlib_html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_every_number_of_the_run_is_on_the_page(written: Path) -> None:
    run = json.loads((written / "run.json").read_text())
    pages = [text_of((written / "report.html").read_text()), (written / "report.md").read_text()]
    for row in run["results"]:
        if row["head"] is not None:
            continue
        low, high = row["ci"]
        for page in pages:
            assert f"{row['value']:.3f}" in page, row
            assert f"[{low:.3f}, {high:.3f}]" in page, row
    for item in run["findings"]:
        assert item["text"].split(": ", 1)[-1] in pages[0]
        assert item["text"] in stdlib_html.unescape(pages[1])
        for page in pages:
            assert f"{item['value']:.3f}" in page
    for page in pages:
        assert run["command"] in stdlib_html.unescape(page)
        assert run["model"]["sha256"] in page
        assert run["data"][0]["sha256"] in page
        assert "truncated image" in page


def test_the_stage_table_puts_each_number_in_its_row_and_column(written: Path) -> None:
    page = (written / "report.html").read_text()
    panel = panels(json.loads((written / "run.json").read_text()))[0]
    stages = page[page.index('class="stages"') :]
    row = re.search(r"<tr[^>]*><th[^>]*>3</th>(.*?)</tr>", stages, flags=re.S)
    assert row is not None
    shown = [float(v) for v in re.findall(r'title="([\d.]+) \(n', row[1])]
    wanted = [panel.at(s, 3) for s in ("value", "key", "hidden")]
    wanted.append(panel.at("value", 3, "random_weights"))
    assert shown == [w.value for w in wanted if w is not None]


def test_best_layer_is_the_one_chosen_on_the_other_half() -> None:
    run = fake_run()
    best = panels(run)[0].best
    assert best is not None
    assert (best.layer, best.value, best.n, best.held_out) == (4, 0.62, 30, True)
    # Rows of the reporting half say the same in the results, and they win.
    value = next(r for r in run["results"] if (r["site"], r["layer"]) == ("value", 5))
    run["results"].append({**value, "value": 0.456, "n": 30, "split": "report_half"})
    best = panels(run)[0].best
    assert best is not None
    assert (best.layer, best.value, best.held_out) == (5, 0.456, True)
    assert panels(run)[0].at("value", 5).value == value["value"]  # type: ignore[union-attr]
    # Of several, the one that says so.
    run["results"].append({**run["results"][-1], "layer": 7, "value": 0.3, "chosen": True})
    best = panels(run)[0].best
    assert best is not None and best.layer == 7


def test_best_layer_without_a_choice_is_marked_as_optimistic(tmp_path: Path) -> None:
    run = fake_run()
    run["findings"] = []
    best = panels(run)[0].best
    curve = [r for r in run["results"] if r["task"] == "foreground_segmentation"]
    curve = [r for r in curve if r["site"] == "value" and r["control"] is None]
    assert best is not None and not best.held_out
    assert best.value == max(r["value"] for r in curve)
    assert "* best layer chosen on the units that score it" in rendered(table.summary(run))


def test_hostile_text_is_escaped_everywhere(attacked: Path) -> None:
    for name in ("report.html", "report.md"):
        page = (attacked / name).read_text()
        assert page.lower().count("<script") == (name == "report.html"), name  # kvfix's own
        assert "<img src=http" not in page, name
        assert not re.search(r"<[^>]*\sonerror=", re.sub(r'"[^"]*"', '""', page)), name
    markdown = re.sub(r"<pre>[^<]*</pre>", "", (attacked / "report.md").read_text())
    assert not re.search(r"(?<!\\)\]\((?!figures/)", markdown)
    assert "alert(1)" in markdown
    svg = (attacked / "figures" / "layer_curves.svg").read_text()
    assert "<script" not in svg
    # A pipe in a text must not open a new cell.
    rows = [line for line in markdown.splitlines() if "alert(1)" in line and line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", r)) for r in rows} <= {3, 4, 6, 13}


def test_only_png_files_of_the_folder_are_read(attacked: Path) -> None:
    page = (attacked / "report.html").read_text()
    assert page.count("data:image/png;base64") == 1
    assert page.count("No picture at") == 5


def test_html_loads_nothing(written: Path, attacked: Path) -> None:
    for folder in (written, attacked):
        page = (folder / "report.html").read_text()
        loads = re.findall(r'<[^>]*?\s(?:src|href|xlink:href|srcset|action)\s*=\s*"([^"]*)"', page)
        assert loads
        assert all(u.startswith(("#", "data:image/png;base64,")) for u in loads), loads
        urls = re.findall(r"url\(([^)]*)\)", page)
        assert all(u.startswith("#") for u in urls), urls
        assert "<link" not in page and "@import" not in page
        assert "default-src 'none'" in page


def test_ids_of_inline_figures_are_unique(written: Path) -> None:
    page = (written / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page)
    assert {a or b for a, b in used} <= set(ids)


def test_maps_of_heads_are_on_the_page_of_a_run_without_findings(tmp_path: Path) -> None:
    run = fake_run(heads=True) | {"findings": [], "kind": "eval"}
    page = write_report(save(run, tmp_path / "run")).read_text()
    assert "Heat maps of the score by layer and KV head" in page and "head_maps-" in page


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


def rendered(item: Any, width: int = 100) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(width=width, file=out, color_system=None, legacy_windows=False).print(item)
    return out.getvalue()


def test_summary_fits_80_columns_with_whole_words_and_numbers() -> None:
    run = fake_run()
    for row in run["results"]:
        row["n"] = 12_234
        if row["task"] == "cosegmentation":
            row |= {"dataset": "imagenet_s", "layer": 31 if row["layer"] == 7 else row["layer"]}
            row |= {"value": 1.0, "ci": [0.995, 1.0], "ceiling": 1.0}
    run["results"][0]["metric"] = HOSTILE
    shown = rendered(table.summary(run), width=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for panel in headline_panels(run)[1:]:
        for score in (panel.at("vision"), panel.best, panel.last, panel.best_random):
            if score is not None:
                assert f"{score.value:.3f}" in shown
    assert "L31" in shown and "12234" in shown
    names = ("task", "vision", "proj.", "random", "position", "chance", "ceil.", "foreground")
    for word in (*names, "segmentation", "cosegmentation"):
        assert word in shown


def test_findings_are_sentences_with_numbers() -> None:
    run = fake_run()
    run["findings"][-1]["text"] = "[bold]not markup[/bold] \x1b[31mred"
    shown = rendered(table.findings(run))
    assert "[bold]not markup[/bold]" in shown and "\x1b" not in shown
    assert "-0.101 [-0.142, -0.063], n = 60" in shown
    assert shown.count("0.579") == 1  # a sentence that holds its numbers does not say them twice
    assert "No finding" in rendered(table.findings({"results": []}))


def test_bad_runs_get_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        write_report(tmp_path)
    save({"results": [{"task": "t"}]}, tmp_path)
    with pytest.raises(ValueError, match=r'results\[0\] has no "dataset"'):
        write_report(tmp_path)


def test_run_without_extras_and_with_gaps(tmp_path: Path) -> None:
    row = {"task": "mcq", "dataset": "d\ud800\x00", "site": "value", "layer": 0, "metric": "m"}
    rows = [{**row, "value": None, "ci": None}, {**row, "layer": 1, "value": 0.5, "ci": None}]
    page = write_report(save({"kvfix": "0.1.0", "results": rows}, tmp_path)).read_text()
    assert "0.500" in page and "\x00" not in page and "nan" not in text_of(page).lower()
    page = write_report(save({"results": [], "complete": False}, tmp_path)).read_text()
    assert "not complete" in page
    assert "not complete" in (tmp_path / "report.md").read_text()
