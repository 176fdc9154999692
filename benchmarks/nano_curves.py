"""The shipped nano models side by side: one figure and one table, as RESULTS.md shows them.

    python benchmarks/nano_curves.py

Runs `kvfix diagnose --only flow` on each nano (two minutes each on two cores; resumes in
runs/nano/), writes benchmarks/nano_curves.svg and prints RESULTS.md's table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kvfix.diagnose.run import diagnose
from kvfix.session import Options
from kvfix.shipped import nano_dir, shipped_families
from kvfix.terminal import RichWatch

COLOURS = {"llava_onevision": "#0072B2", "qwen2_5_vl": "#D55E00", "llava_next": "#009E73"}
FAMILIES = {family: COLOURS[family] for family in shipped_families()}
HERE = Path(__file__).parent
OUTSIDE = (-3.8, -2)  # where vision and projector stand on the axis of layers

Row = dict[str, Any]


def main() -> None:
    """Diagnose, draw, print."""
    records = {}
    for family in FAMILIES:
        out = HERE.parent / "runs" / "nano" / family
        options = Options(model=str(nano_dir(family)), only=("flow",), out=out)
        command = f"kvfix diagnose --only flow --model checkpoints/nano/{family}"
        records[family] = diagnose(options, command=command, watch=RichWatch()).record
    draw(records).savefig(HERE / "nano_curves.svg", metadata={"Date": None})
    print(table(records))


def rows(record: Row, task: str, site: str, control: str | None = None) -> list[Row]:
    """Results of one site kind, by layer."""
    found = [
        r
        for r in record["results"]
        if (r["task"], r["site"], r["control"], r["head"]) == (task, site, control, None)
    ]
    return sorted(found, key=lambda r: r["layer"] or 0)


def tasks(records: dict[str, Row]) -> list[str]:
    """Task names in the order of the run."""
    return list(dict.fromkeys(r["task"] for r in next(iter(records.values()))["results"]))


def draw(records: dict[str, Row]) -> Figure:
    """A panel a task: vision, projector, then the values of every layer; dashed: random weights."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots(2, 3).flat
    for ax, task in zip(axes, tasks(records), strict=True):
        for family, colour in FAMILIES.items():
            record = records[family]
            values = rows(record, task, "value")
            layers = np.arange(len(values))
            low, high = np.array([r["ci"] for r in values]).T
            ax.plot(layers, [r["value"] for r in values], color=colour, lw=2, label=family)
            ax.fill_between(layers, low, high, color=colour, alpha=0.15, lw=0)
            control = rows(record, task, "value", "random_weights")
            ax.plot(layers, [r["value"] for r in control], color=colour, lw=1, ls="--")
            for x, site in ((OUTSIDE[0], "vision"), (OUTSIDE[1], "projector")):
                for r in rows(record, task, site):
                    at = x + 0.2 * (list(FAMILIES).index(family) - 1)
                    span = np.abs(np.array([r["ci"]]).T - r["value"])
                    ax.errorbar(at, r["value"], span, color=colour, marker="o", ms=4, lw=1)
        ax.set_title(f"{task.replace('_', ' ')} ({values[0]['metric']})", fontsize=10, loc="left")
        ax.set_xticks([*OUTSIDE, *layers], ["vision", "proj.", *layers], fontsize=8)
        ax.set_ylim(0, None)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def table(records: dict[str, Row]) -> str:
    """A Markdown table: a row a task and model."""
    lines = [
        "| probe | nano | vision | projector | best value layer | last value layer "
        "| random weights | position only | chance | ceiling |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for task in tasks(records):
        for family, record in records.items():
            peaks = [f for f in record["findings"] if (f["id"], f["task"]) == ("flow.peak", task)]
            values = rows(record, task, "value")
            control = rows(record, task, "value", "random_weights")
            lines.append(
                f"| {task.replace('_', ' ')} | {family} | {_cell(rows(record, task, 'vision'))} "
                f"| {_cell(rows(record, task, 'projector'))} "
                f"| {_interval(peaks[0])} at {peaks[0]['layer']} | {_cell(values[-1:])} "
                f"| {max(r['value'] for r in control):.3f} "
                f"| {_cell(rows(record, task, 'position'), bare=True)} "
                f"| {values[-1]['chance']:.3f} | {values[-1]['ceiling']:.3f} |"
            )
    return "\n".join(lines)


def _cell(found: list[Row], *, bare: bool = False) -> str:
    if not found:
        return "–"
    return f"{found[0]['value']:.3f}" if bare else _interval(found[0])


def _interval(row: Row) -> str:
    low, high = row["ci"]
    return f"{row['value']:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
