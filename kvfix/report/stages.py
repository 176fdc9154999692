"""The rows of run.json, sorted into one panel a (task, dataset, metric).

Figures, terminal table and page all read a run through here, so that they show the same numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYERED = ("value", "key", "hidden")
RANDOM = "random_weights"


@dataclass(frozen=True)
class Score:
    """One number of a run: a metric in its own units, its 95 % interval and its number of units.

    `layer` is 0-based, None for a site outside the language model. A value that could not be computed
    is None; so is a missing interval.
    """

    site: str
    layer: int | None
    value: float | None
    low: float | None
    high: float | None
    n: int
    split: str = "all"
    chosen: bool = False


@dataclass
class Panel:
    """All scores of one task on one dataset under one metric."""

    task: str
    dataset: str
    metric: str
    cluster: str = "unit"
    headline: bool = True  # the first metric of its (task, dataset): the one that is drawn
    chance: float | None = None
    ceiling: float | None = None
    scores: dict[tuple[str, int | None, str | None], Score] = field(default_factory=dict)
    heads: dict[tuple[str, int, int], Score] = field(default_factory=dict)
    held_out: list[Score] = field(default_factory=list)  # value layers on the reporting half

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
        """The best value layer.

        The layer chosen on one half of the units, with its score on the other half, where the run
        names it: the one value row of split `report_half`, or the one that says `"chosen": true`.
        Otherwise the highest point of the curve, which is optimistic; its `split` is then `all`.
        """
        named = [s for s in self.held_out if s.chosen]
        if len(named) == 1:
            return named[0]
        if len(self.held_out) == 1:
            return self.held_out[0]
        return highest(self.curve("value"))

    @property
    def last(self) -> Score | None:
        """The last value layer."""
        curve = self.curve("value")
        return curve[-1] if curve else None

    @property
    def best_random(self) -> Score | None:
        """The highest point of the value curve of the same architecture with random weights."""
        return highest(self.curve("value", RANDOM))


def highest(scores: Iterable[Score]) -> Score | None:
    """The score with the highest value, None where no score has one."""
    known = [s for s in scores if s.value is not None]
    return max(known, key=lambda s: s.value or 0.0, default=None)


def panels(run: dict[str, Any]) -> list[Panel]:
    """Sorts `run["results"]` into panels, in order of first appearance.

    Rows on all units (`split` "all" or absent) fill the curves; rows on the reporting half fill
    `held_out`, and a curve only where the run has no row on all units.

    Raises:
        ValueError: A row lacks a field; the message names the row and the field.
    """
    found: dict[tuple[str, str, str], Panel] = {}
    whole: set[tuple[str, str, str]] = set()
    headlines: set[tuple[str, str]] = set()
    for index, row in enumerate(run.get("results", [])):
        missing = [k for k in ("task", "dataset", "site", "metric", "value") if k not in row]
        if missing:
            raise ValueError(f'run.json: results[{index}] has no "{missing[0]}" (has {sorted(row)})')
        name = (str(row["task"]), str(row["dataset"]), str(row["metric"]))
        if name not in found:
            found[name] = Panel(*name, headline=name[:2] not in headlines)
            headlines.add(name[:2])
        panel, score, control = found[name], _score(row), row.get("control")
        panel.cluster = str(row.get("cluster") or panel.cluster)
        # Chance and ceiling are the LM grid's: the reference encoder may have another grid.
        if panel.chance is None or (score.site == "value" and control is None):
            panel.chance, panel.ceiling = number(row.get("chance")), number(row.get("ceiling"))
        key = (score.site, score.layer, control)
        if row.get("head") is not None:
            if score.layer is not None and control is None:
                panel.heads[score.site, score.layer, int(row["head"])] = score
        elif score.split == "all":
            panel.scores[key] = score
            whole.add(name)
        else:
            if score.site == "value" and control is None and score.layer is not None:
                panel.held_out.append(score)
            if name not in whole:
                panel.scores.setdefault(key, score)
    return list(found.values())


def drawn(run: dict[str, Any]) -> list[Panel]:
    """The panels of the headline metrics: one a (task, dataset)."""
    return [p for p in panels(run) if p.headline]


def number(value: Any) -> float | None:
    """A finite float, else None (JSON null, NaN, infinity)."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def interval(ci: Any) -> tuple[float | None, float | None]:
    """(low, high) of a JSON interval; (None, None) where it is null or not two finite numbers."""
    if not isinstance(ci, list | tuple) or len(ci) != 2:
        return None, None
    low, high = number(ci[0]), number(ci[1])
    return (low, high) if low is not None and high is not None else (None, None)


def read_run(folder: Path) -> dict[str, Any]:
    """Reads `folder/run.json`; control characters and broken text become U+FFFD.

    Raises:
        FileNotFoundError: There is no run.json in the folder.
        ValueError: The file is not a run; the message says what was found.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the run.json of a finished run, found no such file")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("results"), list):
        found = sorted(run) if isinstance(run, dict) else type(run).__name__
        raise ValueError(f'{path}: expected an object with a list "results", found {found}')
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
        split=str(row.get("split") or "all"),
        chosen=row.get("chosen") is True,
    )
