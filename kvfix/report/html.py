"""`report.html` and `report.md`: one run, told from the findings down to the exact command.

Everything in run.json counts as hostile text. The HTML is autoescaped, loads nothing (its policy
forbids it) and needs no script; Markdown has the same rule through `finalize`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfix.data.groups import grouped
from kvfix.findings import Finding, number
from kvfix.report import figures, questions, surfacing, words
from kvfix.report.asked import asked
from kvfix.report.curves import curves
from kvfix.report.pictures.album import Album
from kvfix.report.stages import LAYERED, RANDOM, Panel, Score, load, panels
from kvfix.report.verdict import model_name, verdict
from kvfix.runs.atomic import write_text
from kvfix.runs.rows import full_name

if TYPE_CHECKING:
    from jinja2 import Environment

# The fixed colours of an SVG -> the page's variables, which know light and dark.
PAGE_COLOURS = {
    figures.PAPER: "--card",
    figures.INK: "--ink",
    figures.MUTED: "--muted",
    figures.RULE: "--rule",
    figures.CONTROL: "--control",
    **{figures.COLOURS[s]: f"--{s}" for s in (*LAYERED, "projector", "reference")},
}
OUTSIDE = {
    "reference": "Reference encoder",
    "vision": "Vision encoder",
    "projector": "Projector",
    "position": "Position only (control)",
}
DIAGNOSES = ("flow", "keys", "prefix", "surfacing")


def write_report(folder: Path) -> Path:
    """Write `figures/`, `report.html` and `report.md` of a run folder, and give the page's path.

    A folder without run.json is a FileNotFoundError, one without results a ValueError.
    """
    run = load(folder)
    page = _page(run, folder)
    drawn = figures.layer_curves(run, folder / "figures")
    maps = figures.head_maps(run, folder / "figures")
    inline = {p.stem: _inline_svg(p.read_text(encoding="utf-8"), p.stem) for p in maps[::2]}
    html = html_environment().get_template("report.html.j2")
    write_text(folder / "report.html", html.render(svg=inline, **page))
    markdown = markdown_environment().get_template("report.md.j2")
    names = {path.stem for path in drawn + maps}
    write_text(folder / "report.md", markdown.render(drawn=names, **page))
    return folder / "report.html"


def _page(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What both templates show."""
    model = run.get("model") or {}
    shown, album = panels(run), Album(folder)
    return {
        "run": run,
        "model": model,
        "name": model_name(model),
        "verdict_of": verdict(run, shown),
        "curves": curves(shown),
        "asked": asked(folder, run.get("surfacing") or [], album),
        **own_script(),
        "facts": _facts(run, model),
        "findings": _findings(run),
        "panels": shown,
        "headlines": [p for p in shown if p.headline and p.staged],
        "tables": [_stage_table(p) for p in shown],
        "overlays": _overlays(run, album),
        "boards": questions.boards(run),
        "surfacing": [surfacing.row(item) for item in run.get("surfacing") or []],
        "surfacing_trained": [surfacing.row(i) for i in run.get("surfacing_trained") or []],
        "prefix": [_prefix(item) for item in run.get("prefix") or []],
        "notes": [str(note) for note in run.get("notes") or []],
        "left_out": run.get("left_out") or [],
        "words": words,
        "random": RANDOM,
    }


def _findings(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The findings by diagnosis; `open` ones show no clear difference and are folded away."""
    kinds: dict[str, dict[str, Any]] = {
        kind: {"told": [], "open": [], "any": False} for kind in DIAGNOSES
    }
    for finding in map(Finding.from_json, run.get("findings") or []):
        kind = next((k for k in DIAGNOSES if finding.id.startswith(k)), "flow")
        group = kinds[kind]
        group["open" if finding.clear is False else "told"].append(finding)
        group["any"] = True
    return kinds


def own_script() -> dict[str, Any]:
    """The page's own script, and the policy that lets no other run."""
    from markupsafe import Markup

    text = (Path(__file__).parent / "templates" / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    return {"script": Markup(text), "policy": Markup(policy)}


def _facts(run: dict[str, Any], model: dict[str, Any]) -> list[tuple[str, str]]:
    versions = run.get("versions") or {}
    facts = [
        ("Family", model.get("family")),
        ("Precision", model.get("dtype")),
        ("Adapter", model.get("adapter") or "none"),
        ("Processor", model.get("processor")),
        ("Reference encoder", run.get("reference_encoder")),
        ("Started", readable_date(run.get("started"))),
        ("Took", readable_duration(number(run.get("seconds")))),
        ("kvfix", run.get("kvfix")),
        *((name, versions.get(name)) for name in ("torch", "transformers", "peft")),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _prefix(item: dict[str, Any]) -> dict[str, Any]:
    """A task that was probed with texts before the image."""
    shortest, longest = item.get("prefix_tokens") or (0, 0)
    tokens = str(shortest) if shortest == longest else f"{shortest} to {longest}"
    orders = item.get("orders")
    found = {k: item.get(k) for k in ("task", "dataset", "n")}
    return {**found, "tokens": tokens, "orders": (orders or {}).items()}


def _stage_table(panel: Panel) -> dict[str, Any]:
    """The full table of a panel: stages outside the LM, then a row a layer, a column a site."""
    sites = [s for s in LAYERED if panel.curve(s)]
    control = any(which == RANDOM for _, _, which in panel.scores)
    everything = [s.value for s in panel.scores.values() if s.value is not None]
    top = max([*everything, panel.ceiling or 0.0, 1e-9])
    outside = [
        {"name": name, "score": score, "random": panel.at(site, None, RANDOM)}
        for site, name in OUTSIDE.items()
        if (score := panel.at(site)) is not None
    ]
    layers = [
        {
            "layer": layer,
            "cells": [panel.at(s, layer) for s in sites],
            "random": panel.at("value", layer, RANDOM),
        }
        for layer in range(panel.n_layers)
    ]
    found = {"panel": panel, "sites": sites, "control": control, "top": top}
    return {**found, "outside": outside, "layers": layers}


def _overlays(run: dict[str, Any], album: Album) -> list[dict[str, Any]]:
    """The overlays by task, and by unit in the order of stages."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in run.get("overlays") or []:
        picture = album.get(item.get("file"))
        shown = {k: item.get(k) for k in ("id", "site", "layer", "file", "caption", "best")}
        shown |= {"picture": picture, "score": number(item.get("score"))}
        name = (full_name(str(item.get("task")), item.get("subtask")), str(item.get("dataset")))
        groups.setdefault(name, []).append(shown)
    return [
        {
            "task": task,
            "dataset": dataset,
            "units": list(grouped(shots, lambda shot: str(shot["id"])).values()),
            "shape": max((s["picture"].shape for s in shots if s["picture"]), default=1.0),
        }
        for (task, dataset), shots in groups.items()
    ]


def _inline_svg(svg: str, prefix: str) -> str:
    """An SVG of `figures` ready to stand in the page: page colours and fonts, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    rest = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", rest)  # equal colour bars share one id
    rest = re.sub(r'\b(id="|xlink:href="#)', rf"\1{prefix}-", rest)
    rest = rest.replace("url(#", f"url(#{prefix}-").replace("*{", ".plot *{")
    for colour, name in PAGE_COLOURS.items():
        rest = rest.replace(colour, f"var({name})")
    return f"{head}>{rest}"


def html_environment() -> Environment:
    env = _environment(autoescape=True)
    env.filters |= {"num": _num, "ci": _ci, "span": _span, "human": _human}
    return env


def markdown_environment() -> Environment:
    from markupsafe import Markup

    env = _environment(autoescape=False, finalize=_md)
    env.filters |= {
        "num": lambda v: Markup(_num(v)),
        "ci": lambda s: Markup(_ci(s)),
        "cell": lambda s: Markup(f"{_num(s.value)} {_ci(s)}".strip() if s else "–"),
        "plain": Markup,  # for text that this package wrote itself
        "code": lambda text: Markup(escape(str(text), quote=False)),
        "human": _human,
    }
    return env


def _environment(**options: Any) -> Environment:
    from jinja2 import Environment, FileSystemLoader

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


def _md(item: Any) -> Any:
    """Text that Markdown shows as it is; numbers and `Markup` pass."""
    from markupsafe import Markup

    if not isinstance(item, str) or isinstance(item, Markup):
        return item
    # An interval such as [0.1, 0.2] can be no link and stays readable in the source.
    marks = r"(\[[-+.,\d ]+\](?![\[(:]))|([\\`*_\[\]|~$])"
    text = re.sub(marks, lambda m: m[1] or f"\\{m[2]}", " ".join(item.split()))
    # A mark at the start could open a heading or a list.
    text = re.sub(r"^([#+\-=]+(\s|$))", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)](\s|$))", r"\1\\\2", text)
    return escape(text, quote=False)


def _num(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _ci(score: Score) -> str:
    return _span((score.low, score.high))


def _span(ends: tuple[float | None, float | None] | None) -> str:
    low, high = ends or (None, None)
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def _human(task: Any) -> str:
    return str(task).replace("_", " ")


def readable_date(text: Any) -> str | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if when.tzinfo else f"{when:%Y-%m-%d %H:%M}"


def readable_duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{seconds:.1f} s" if seconds < 100 else f"{minutes} min {rest} s"
