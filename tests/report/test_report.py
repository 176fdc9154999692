"""The report shows the run's numbers, all of them, and nothing that a run could smuggle in."""

from __future__ import annotations

import html as stdlib_html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_runs import HOSTILE, fake_run
from PIL import Image

from kvfix.report import table
from kvfix.report.html import write_report
from kvfix.report.stages import headline_panels, panels


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
    best = panels(fake_run())[0].best
    assert best is not None
    assert (best.layer, best.value, best.n, best.held_out) == (4, 0.62, 30, True)


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
