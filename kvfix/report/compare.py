"""`compare.json`, `compare.html` and `compare.md` of two paired runs.

Answers are shown in percent and their differences in points, as benchmarks of questions publish
them; probes in the metric's own units. All three files show what compare.json holds, and whatever
came from data counts as hostile text, as in the report of one run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfix.data.groups import grouped
from kvfix.findings import FEWEST_CLUSTERS, PLACES, interval, number
from kvfix.report.asked import Asked, changed
from kvfix.report.html import (
    html_environment,
    markdown_environment,
    own_script,
    readable_date,
    readable_duration,
)
from kvfix.report.pictures.album import Album
from kvfix.report.stages import clean
from kvfix.report.verdict import change_verdict, model_name
from kvfix.runs.atomic import write_text
from kvfix.runs.rows import full_name

if TYPE_CHECKING:
    from jinja2 import Environment

ALPHA = 0.05
GLOSSARY = (
    (
        "Paired",
        "Both runs scored the same units, and every difference is AFTER minus BEFORE on the same "
        "unit, so that hard and easy units cancel out.",
    ),
    (
        "Interval",
        "95 % confidence interval by bootstrap. Units that depend on each other are drawn "
        "together, and questions within their task.",
    ),
    ("Macro, micro", "Macro is the mean over tasks, micro the mean over questions."),
    (
        "Fixed, broken",
        "Questions that were wrong before and are right after; right before and wrong after.",
    ),
    (
        "p, Holm p",
        "Exact McNemar test of fixed against broken; Holm's correction for testing several tasks "
        "at once. A task is clear if its Holm p is below 0.05.",
    ),
    (
        "Detectable",
        "The smallest true difference that this many questions would show in 4 of 5 repetitions, "
        "at the share of changed answers seen here. A smaller difference cannot be told from none.",
    ),
    (
        "Unread",
        "No option letter could be parsed from the answer; it counts as wrong. If many answers "
        "are unread before and few after, accuracy rises by format alone.",
    ),
    (
        "Best value layer",
        "Chosen on one half of the units of BEFORE and compared on the other half. AFTER has no "
        "say in it. A star marks a layer chosen on the very units that compare it.",
    ),
    (
        "Clear",
        "A probe's difference is clear if an interval that holds for all tasks at once "
        "(Bonferroni) leaves out 0.",
    ),
)


def write_pages(out: Path, name: str, record: dict[str, Any], page: dict[str, Any]) -> Path:
    """Write a record as NAME.json, and its page by the templates of that name; the HTML's path."""
    from markupsafe import Markup

    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, allow_nan=False)
    write_text(out / f"{name}.json", text + "\n")
    html = _with(html_environment(), str)
    markdown = _with(markdown_environment(), lambda text: Markup(escape(text, quote=False)))
    for end, env in (("html", html), ("md", markdown)):
        write_text(out / f"{name}.{end}", env.get_template(f"{name}.{end}.j2").render(**page))
    return out / f"{name}.html"


def _with(env: Environment, kind: Callable[[str], str]) -> Environment:
    """The environment of the report with this page's ways to write numbers."""
    ways = {"pct": pct, "pts": pts, "pspan": pspan, "p": p_value, "signed": signed, "span": span}
    for name, way in ways.items():
        env.filters[name] = lambda v, way=way: kind(way(v))
    return env


def page_of(record: dict[str, Any]) -> dict[str, Any]:
    """What the templates of a comparison show."""
    record = clean(record)
    questions, probes = record["questions"], record["probes"]
    for q in questions:
        _lay_out([*q["tasks"], q["macro"], q["micro"]])
        for row in q["tasks"]:
            few = row["n"] < FEWEST_CLUSTERS
            row["tone"] = "open" if few else "clear" if row["p_holm"] < ALPHA else "well"
        low, high = interval(q["macro"]["ci"])
        q["macro"]["tone"] = "well" if low is None or low <= 0 <= (high or 0.0) else "clear"
        q["format_rows"] = format_rows(q)
    _lay_out(probes)
    for row in probes:
        row["place_name"] = place_name(row)
        row["name"] = full_name(row["task"], row.get("subtask"))
    values = [r for r in record["results"] if r["site"] == "value" and r["head"] is None]
    _lay_out(values)
    facts = [
        ("Before", record["before"]["name"]),
        ("After", record["after"]["name"]),
        ("Resamples", f"{record['resamples']:,}"),
        ("Started", readable_date(record["started"])),
        ("Took", readable_duration(number(record["seconds"]))),
        ("kvfix", record["kvfix"]),
    ]
    layers = grouped(
        sorted(values, key=lambda r: r["layer"] or 0),
        lambda r: (full_name(r["task"], r.get("subtask")), r["dataset"], r["metric"]),
    )
    return {
        "run": record,
        "facts": facts,
        "findings": [{**f, "shown": _shown(f)} for f in record["findings"]],
        "questions": questions,
        "probes": probes,
        "layers": layers,
        "units": [
            {**u, "name": full_name(u["task"], u.get("subtask")), "alone": _alone(u)}
            for u in record["units"]
        ],
        "glossary": GLOSSARY,
        "alpha": ALPHA,
        "names": _names(record["before"], record["after"]),
        "verdict_of": change_verdict(record),
        "asked": _asked(record),
        **own_script(),
    }


def _names(*sides: dict[str, Any]) -> list[str]:
    """Of models, or of predictions; two runs of one model are told apart by their folders."""
    names = [model_name(s["model"]) if s.get("model") else str(s["name"]) for s in sides]
    if len(set(names)) == len(names):
        return names
    return [f"{name}, {Path(s['folder']).name}" for name, s in zip(names, sides, strict=True)]


def _asked(record: dict[str, Any]) -> list[Asked]:
    """The fixed and broken questions of two runs of kvfix; other tools' runs hold no questions."""
    before, after = (Path(record[side]["folder"]) for side in ("before", "after"))
    return changed(before, after, Album(after))


def _lay_out(rows: list[dict[str, Any]]) -> None:
    """Give rows the place of value and interval on an axis 0..100 with zero at 50."""
    ends = [abs(e) for r in rows for e in (*interval(r["ci"]), number(r["value"])) if e is not None]
    scale = 48 / max([*ends, 1e-9])
    for row in rows:
        low, high = interval(row["ci"])
        value = number(row["value"])
        if value is not None:
            at = [value if e is None else e for e in (low, high)]
            row["forest"] = [round(50 + scale * x, 2) for x in (value, *at)]


def _alone(units: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(unit, run that has it, why the other has not) of the first units without a partner."""
    sides = (("BEFORE", "only_before"), ("AFTER", "only_after"))
    found = [(i, side, units["why"].get(i, "")) for side, key in sides for i in units[key]]
    return found[:50]


def _shown(finding: dict[str, Any]) -> tuple[str, str]:
    """Value and interval of a finding as text."""
    if finding["percent"]:
        return pts(finding["value"]), pspan(finding["ci"])
    return signed(finding["value"]), span(finding["ci"])


def format_rows(questions: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of "format or perception?" with their names, all shares."""
    form = questions["format"]
    rows = [("unread answers", form["unparsed"])]
    if form["read_twice"] is not None:
        rows.append((f"micro, {form['read_twice']['n']} read both times", form["read_twice"]))
    if questions["logprob"] is not None:
        for name in ("micro", "macro"):
            rows.append((f"{name} by letter log-probability", questions["logprob"][name]))
    letters = [r for r in form["letters"] if r["letter"] != "unparsed"]
    return [*rows, *((f"({r['letter']}) chosen", r) for r in letters)]


def task_name(row: dict[str, Any]) -> str:
    """`semantic correspondence (spair71k)`; scenes are not named."""
    name = full_name(row["task"], row.get("subtask")).replace("_", " ")
    return name if row["dataset"] == "scenes" else f"{name} ({row['dataset']})"


def place_name(row: dict[str, Any]) -> str:
    """`best value layer L5`, with a star where the layer was chosen on the units that compare."""
    star = "*" if row["place"] == "best" and not row["held_out"] else ""
    layer = "" if row["layer"] is None else f" L{row['layer']}"
    return f"{PLACES[row['place']].name}{layer}{star}"


def _number(value: float | None, form: str, times: int = 1) -> str:
    return "–" if value is None else f"{times * value:{form}}"


def _span(ci: Any, form: str, times: int = 1) -> str:
    low, high = interval(ci)
    return "" if low is None or high is None else f"[{times * low:{form}}, {times * high:{form}}]"


num = partial(_number, form=".3f")  # `0.123`; a dash for no number
signed = partial(_number, form="+.3f")  # `+0.123`
span = partial(_span, form="+.3f")  # `[-0.010, +0.120]`; empty where there is no interval
pct = partial(_number, form=".1f", times=100)  # a share in percent: `12.3`
pts = partial(_number, form="+.1f", times=100)  # a difference of shares in points: `+1.2`
pspan = partial(_span, form="+.1f", times=100)  # an interval of shares in points


def p_value(p: float | None) -> str:
    """`0.034`, or `<.001`."""
    if p is None:
        return "–"
    return "<.001" if p < 0.001 else f"{p:.3f}"
