"""The rows of run.json, sorted into one panel a (task, dataset, metric).

Figures, terminal table and page all read a run through here, so that they show the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvfix.findings import Finding, interval, number
from kvfix.runs.rows import READOUT, full_name

LAYERED = ("value", "key", "hidden")
RANDOM = "random_weights"
PEAK = "flow.peak"
KEYS = "image_keys"  # the task whose scores are shares of keys


@dataclass(frozen=True)
class Score:
    """One number of a run: a metric in its own units, its interval and its number of units.

    `layer` is 0-based, None for a site outside the language model. Numbers that could not be
    computed are None. `chance` and `ceiling` are what this very site would score by chance and at
    best.
    """

    site: str
    layer: int | None
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    chance: float | None = None
    ceiling: float | None = None
    held_out: bool = False  # scored on the half of the units that did not choose the layer


@dataclass
class Panel:
    """All scores of one task on one dataset under one metric."""

    task: str
    subtask: str | None
    dataset: str
    metric: str
    headline: bool = True  # the first metric of its task and dataset: the one that is drawn
    cluster: str = "unit"
    clusters: int | None = None
    scores: dict[tuple[str, int | None, str | None], Score] = field(default_factory=dict)
    heads: dict[tuple[str, int, int], Score] = field(default_factory=dict)
    peak: Score | None = None  # the best value layer as the finding `flow.peak` reports it

    @property
    def name(self) -> str:
        """Task and subtask in one word."""
        return full_name(self.task, self.subtask)

    def at(self, site: str, layer: int | None = None, control: str | None = None) -> Score | None:
        """The score of one site, or None where the run has none."""
        return self.scores.get((site, layer, control))

    def curve(self, site: str, control: str | None = None) -> list[Score]:
        """The scores of a site over its layers, first layer first."""
        found = [
            s
            for (where, layer, which), s in self.scores.items()
            if where == site and which == control and layer is not None
        ]
        return sorted(found, key=lambda s: s.layer or 0)

    @property
    def measured(self) -> bool:
        """Whether it holds scores of the model itself, not only differences and controls."""
        return any(control is None for _, _, control in self.scores)

    @property
    def staged(self) -> bool:
        """Whether it tells how good the features of stages are, as tables of stages do."""
        return self.measured and self.task != KEYS

    @property
    def n_layers(self) -> int:
        """Layers of the language model that the run scored: the highest layer plus one."""
        return 1 + max((layer for _, layer, _ in self.scores if layer is not None), default=-1)

    @property
    def n(self) -> int:
        """Units behind the value curve (behind the other rows where there is no value curve)."""
        rows = self.curve("value") or list(self.scores.values())
        return max((s.n for s in rows), default=0)

    @property
    def best(self) -> Score | None:
        """The best value layer: that of `flow.peak`, else the curve's highest, which is optimistic.

        It is `held_out` where other units chose it than those that score it.
        """
        return self.peak or highest(self.curve("value"))

    @property
    def last(self) -> Score | None:
        """The last value layer."""
        curve = self.curve("value")
        return curve[-1] if curve else None

    @property
    def best_random(self) -> Score | None:
        """The highest point of the value curve of the same architecture with random weights."""
        return highest(self.curve("value", RANDOM))

    @property
    def chance(self) -> float | None:
        """Chance at the best value layer (at the first row where there is no value)."""
        return self._bound("chance")

    @property
    def ceiling(self) -> float | None:
        """The attainable score at the best value layer (at the first row where there is none)."""
        return self._bound("ceiling")

    def _bound(self, name: str) -> float | None:
        rows = [s for s in (self.best, *self.scores.values()) if s is not None]
        return next((b for s in rows if (b := getattr(s, name)) is not None), None)


def highest(scores: Iterable[Score]) -> Score | None:
    """The score with the highest value, None where no score has one."""
    known = [s for s in scores if s.value is not None]
    return max(known, key=lambda s: s.value or 0.0, default=None)


def panels(run: dict[str, Any]) -> list[Panel]:
    """Sort `run["results"]` into panels, in order of first appearance.

    A row that lacks a field is a ValueError, which names both.
    """
    found: dict[tuple[str, str | None, str, str], Panel] = {}
    headlines: set[tuple[str, str | None, str]] = set()
    for index, row in enumerate(run.get("results", [])):
        if "scoring" in row:
            continue  # an answer has no stage: `kvfix.report.questions`
        missing = [k for k in ("task", "dataset", "site", "metric", "value") if k not in row]
        if missing:
            raise ValueError(
                f'run.json: results[{index}] has no "{missing[0]}", only {sorted(row)}'
            )
        task = str(row["task"])
        if "subtask" not in row and task.startswith(f"{READOUT}_"):  # of schema 0
            row = row | {"task": READOUT, "subtask": task.removeprefix(f"{READOUT}_")}
        name = (str(row["task"]), row.get("subtask"), str(row["dataset"]), str(row["metric"]))
        if name not in found:
            found[name] = Panel(*name, headline=name[:3] not in headlines)
            headlines.add(name[:3])
        _place(row, found[name])
    shown = list(found.values())
    for item in run.get("findings") or []:
        if item.get("id") == PEAK:
            _note_peak(Finding.from_json(item), shown)
    return shown


def headline_panels(run: dict[str, Any]) -> list[Panel]:
    """The panels of the headline metrics: one a (task, dataset)."""
    return [p for p in panels(run) if p.headline and p.measured]


def _place(row: dict[str, Any], panel: Panel) -> None:
    score, control = _score(row), row.get("control")
    if row.get("head") is not None:
        if score.layer is not None and control is None:
            panel.heads[score.site, score.layer, int(row["head"])] = score
        return
    panel.scores[score.site, score.layer, control] = score
    panel.cluster = str(row.get("cluster") or panel.cluster)
    if control is None:
        panel.clusters = row.get("clusters", panel.clusters)


def _note_peak(peak: Finding, shown: list[Panel]) -> None:
    """Gives the finding to its panel; fewer units than the curve has means the reporting half."""
    layer, got = peak.more.get("layer"), peak.estimate
    for panel in shown:
        same = panel.headline and panel.task == peak.task
        row = panel.at("value", layer) if isinstance(layer, int) else None
        if same and peak.dataset in (None, panel.dataset) and row is not None:
            low, high = got.ci or (None, None)
            half = 0 < got.n < row.n
            panel.peak = replace(row, value=got.value, low=low, high=high, n=got.n, held_out=half)


def _score(row: dict[str, Any]) -> Score:
    low, high = interval(row.get("ci"))
    layer = row.get("layer")
    return Score(
        site=str(row["site"]),
        layer=None if layer is None else int(layer),
        value=number(row["value"]),
        low=low,
        high=high,
        n=int(row.get("n") or 0),
        chance=number(row.get("chance")),
        ceiling=number(row.get("ceiling")),
    )


def load(folder: Path) -> dict[str, Any]:
    """The run of a folder with its texts cleaned; a ValueError says why it is none."""
    from kvfix.runs.resume import read_run

    file = Path(folder) / "run.json"
    run = read_run(Path(folder))
    if not isinstance(run.get("results"), list):
        raise ValueError(f'{file}: expected an object with a list "results", found {sorted(run)}')
    return clean(run)


def clean(item: Any) -> Any:
    """The same JSON value with everything unprintable in its texts replaced by U+FFFD."""
    if isinstance(item, str):
        return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in item)
    if isinstance(item, list):
        return [clean(i) for i in item]
    if isinstance(item, dict):
        return {clean(k): clean(v) for k, v in item.items()}
    return item
