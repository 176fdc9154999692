"""The verdict of a run: a few sentences anybody in the field understands, and what to run next.

Every sentence stands on findings whose interval decides; what is too small to tell is called so.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from kvfix.findings import FEWEST_CLUSTERS, interval, number
from kvfix.report.stages import Panel
from kvfix.runs.rows import READOUT
from kvfix.shipped import nano_dir

LOSS, WELL, OPEN = "loss", "well", "open"  # tones: something is wrong; nothing is; too little data
STEPS = {"flow.projector": "in the projector", "flow.late_loss": "after the best layer"}
CARRIED = ("--data", "--processor", "--quant", "--dtype", "--attn")  # options of both commands
MORE = 64  # units that a diagnosis without a clear result is repeated on


@dataclass(frozen=True)
class Point:
    """One sentence or two of the verdict under a short heading; `tone` is LOSS, WELL or OPEN."""

    head: str
    text: str
    tone: str


@dataclass(frozen=True)
class Verdict:
    """What a reader with one minute should know."""

    points: tuple[Point, ...]
    why: str  # what the command is for
    command: str


def model_name(model: dict[str, Any]) -> str:
    """A name for people: a hub id as it is, of a folder its last part, with the adapter's."""
    name = str(model.get("id") or "unnamed model")
    shown = Path(name).name if Path(name).is_absolute() or name.count("/") > 1 else name
    adapter = model.get("adapter")
    return f"{shown} + {Path(str(adapter)).name}" if adapter else shown


def verdict(run: dict[str, Any], panels: Sequence[Panel]) -> Verdict:
    """The verdict of a diagnosis or an evaluation.

    Args:
        run: in the format of run.json.
        panels: its panels, as `kvfix.report.stages.panels` sorts them.
    """
    shown = [p for p in panels if p.headline and p.staged]
    found = run.get("findings") or []
    points = [
        *_flow(found, shown),
        *_surfacing(run.get("surfacing") or []),
        *_keys(found),
    ]
    if not points:
        points = [*_measured(run, shown)]
    return Verdict(tuple(points), *_next(run, points))


def _flow(findings: Sequence[dict[str, Any]], shown: Sequence[Panel]) -> Iterable[Point]:
    """Where information about the image is lost."""
    steps = [f for f in findings if f.get("id") in STEPS]
    if not steps:
        return
    head, tasks = "Where it is lost", len({(f.get("task"), f.get("dataset")) for f in steps})
    losses = [f for f in steps if f.get("clear") and (number(f.get("value")) or 0.0) < 0]
    small = [f for f in steps if (number(f.get("n")) or 0) < FEWEST_CLUSTERS]
    if not losses and small:
        yield Point(head, "No loss is clear, but this few units can hardly show one.", OPEN)
    elif not losses:
        yield Point(
            head,
            f"Nowhere clearly: in {_count(tasks, 'task')} neither the projector nor the later "
            "layers of the language model hold less than the stage before.",
            WELL,
        )
    else:
        yield Point(head, " ".join(_losses(losses, tasks, shown)), LOSS)


def _losses(losses: Sequence[dict[str, Any]], tasks: int, shown: Sequence[Panel]) -> Iterable[str]:
    for kind, place in STEPS.items():
        mine = [f for f in losses if f["id"] == kind]
        if not mine:
            continue
        worst = min(mine, key=lambda f: f["value"])
        share = f"{len(mine)} of {_count(tasks, 'task')}"
        text = f"Information about the image is clearly lost {place} in {share}"
        others = [_human(f) for f in mine if f is not worst]
        also = f", also in {' and '.join(others)}" if others else ""
        yield f"{text}: most in {_human(worst)}{_fall(worst, shown)}{also}."


def _fall(finding: dict[str, Any], shown: Sequence[Panel]) -> str:
    """` (IoU 0.61 at layer 3 of the language model, 0.40 at its last, 7; -0.21 [-0.3, -0.1])`."""
    name = (finding.get("task"), finding.get("dataset"))
    panel = next((p for p in shown if (p.task, p.dataset) == name), None)
    if panel is None:
        return ""
    if finding["id"] == "flow.projector":
        first, then, after = panel.at("vision"), panel.at("projector"), "after the projector"
        before = "before"
    else:
        first, then = panel.best, panel.last
        before = f"at layer {first.layer} of the language model" if first else ""
        after = f"at its last, {then.layer}" if then else ""
    if first is None or then is None or first.value is None:
        return ""
    low, high = interval(finding.get("ci"))
    span = "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"
    change = f"{finding['value']:+.3f}{span} in pairs, n = {finding['n']}"
    ends = first.value + finding["value"]  # on the same units: the last layer's row is of all
    return f" ({panel.metric} {first.value:.3f} {before}, {ends:.3f} {after}: {change})"


def _surfacing(records: Sequence[dict[str, Any]]) -> Iterable[Point]:
    """What the values hold and the written answers do not say."""
    written = [r for r in records if r.get("scoring") == "generation"]
    if not written:
        return
    head = "What it sees and does not say"
    clear = [r for r in written if r.get("clear")]
    if clear:
        worst = max(clear, key=lambda r: r["of_all"]["value"])
        kinds = ", ".join(_human(r, "subtask") for r in clear)
        yield Point(
            head,
            f"In {len(clear)} of {_count(len(written), 'kind')} of question ({kinds}) the image "
            "values, which attention hands on, hold answers that the model does not give. In "
            f"{100 * worst['of_all']['value']:.0f} % of all {worst['n']} questions of "
            f"{_human(worst, 'subtask')} they give the right option where the model writes a wrong "
            f"one; values of other questions would, by luck, in "
            f"{100 * worst['shuffled']['value']:.0f} %.",
            LOSS,
        )
    elif all(r["n"] < FEWEST_CLUSTERS for r in written):
        yield Point(head, "Too few questions to tell.", OPEN)
    else:
        n = sum(r["n"] for r in written)
        yield Point(
            head,
            f"Nothing clearly: in {_count(len(written), 'kind')} of question ({n} in all) the "
            "values hold no more right answers that go unsaid than luck gives.",
            WELL,
        )


def _keys(findings: Sequence[dict[str, Any]]) -> Iterable[Point]:
    """Whether keys that ignore the image are there, and do harm."""
    share = next((f for f in findings if f.get("id") == "keys.share"), None)
    if share is None:
        return
    head, value = "Image keys", number(share.get("value")) or 0.0
    if not share.get("clear"):
        yield Point(head, "Not to blame: every layer's keys depend on the image.", WELL)
        return
    helps = any(
        f.get("clear") and (number(f.get("value")) or 0.0) > 0
        for f in findings
        if str(f.get("id")).startswith("keys.block")
    )
    yield Point(
        head,
        f"{100 * value:.1f} % of them hardly depend on the image; blocking them "
        + ("clearly helps, so they do harm." if helps else "does not clearly help."),
        LOSS if helps else OPEN,
    )


def _measured(run: dict[str, Any], shown: Sequence[Panel]) -> Iterable[Point]:
    """What an evaluation found, which draws no conclusions: its answers and its best values."""
    for row in run.get("results") or []:
        if row.get("metric") == "accuracy_macro" and row.get("scoring") == "generation":
            chance = "" if row.get("chance") is None else f"; chance is {100 * row['chance']:.0f} %"
            text = (
                f"{100 * row['value']:.1f} % of {row['n']} questions of {row['dataset']} are "
                f"answered right, as a mean over tasks{chance}."
            )
            yield Point("Answers", text, WELL)
    probes = [p for p in shown if p.task != READOUT]
    best = [(p, p.best) for p in probes if p.best is not None and p.best.value is not None]
    if best:
        text = "; ".join(
            f"{p.task.replace('_', ' ')} {p.metric} {b.value:.2f} at layer {b.layer}"
            for p, b in best
        )
        yield Point("Best image values", f"{text[:1].upper()}{text[1:]}.", WELL)


def _next(run: dict[str, Any], points: Sequence[Point]) -> tuple[str, str]:
    """Why, and the command."""
    model = run.get("model") or {}
    shipped = str(nano_dir())  # what is repaired where no model is named
    named = [f"{k}={v}" for k, v in _named(model).items() if v != shipped]
    tones = {p.head: p.tone for p in points}
    if run.get("kind") != "diagnose":
        return (
            "Run it on another model or adapter, and compare the two:",
            "kvfix compare BEFORE AFTER",
        )
    if tones.get("What it sees and does not say") == LOSS:
        repair = shlex.join(["kvfix", "repair", *named])
        return "Train it to say what it sees, and measure again:", repair
    if tones.get("Image keys") == LOSS:
        return (
            "Train the keys that ignore the image away, and measure again:",
            shlex.join(["kvfix", "repair", "--recipe", "artifacts", *named]),
        )
    if OPEN in tones.values():
        return (
            "Measure more units, so that what is still open can be told:",
            _again(run, "--limit", str(_more(run))),
        )
    return (
        "Try it on your own pictures and questions:",
        _again(run, "--data", "NAME=DIR"),
    )


def _named(model: dict[str, Any]) -> dict[str, str]:
    """Model and adapter as options take them."""
    adapter = {"adapter": str(model["adapter"])} if model.get("adapter") else {}
    return {"model": str(model.get("id") or "MODEL"), **adapter}


def _words(model: dict[str, Any]) -> str:
    """`--model ID --adapter DIR`, quoted for a shell."""
    return shlex.join(word for k, v in _named(model).items() for word in (f"--{k}", v))


def _again(run: dict[str, Any], name: str, value: str) -> str:
    """A run's own command, with another value of an option and another folder."""
    words, kept = iter(_split(str(run.get("command") or ""))), list[str]()
    for word in words:
        option, _, given = word.partition("=")
        if option not in (name, "--out", "--json"):
            kept.append(word)
        elif option != "--json" and not given:
            next(words, None)
    return shlex.join(
        [*(kept or ["kvfix", str(run.get("kind"))]), name, value, "--out", "runs/more"]
    )


def _carried(run: dict[str, Any]) -> str:
    """What a run's command said of its data and of how the model is read, for another command."""
    words = _split(str(run.get("command") or ""))
    pairs = [(a, b) for a, b in pairwise(words) if a in CARRIED]
    pairs += [(a, b) for a, _, b in (word.partition("=") for word in words) if b and a in CARRIED]
    return "".join(f" {name} {shlex.quote(value)}" for name, value in pairs)


def _split(command: str) -> list[str]:
    """The words of a command; none of one that a shell would not take either."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _more(run: dict[str, Any]) -> int:
    limit = re.search(r"--limit[ =](\d+)", str(run.get("command")))
    return max(MORE, 4 * int(limit[1])) if limit else 4 * MORE


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _human(item: dict[str, Any], key: str = "task") -> str:
    return str(item.get(key)).replace("_", " ").lower()


def change_verdict(record: dict[str, Any]) -> Verdict:
    """The verdict of a comparison of two runs: answers first, then probes."""
    points = [*map(_answers_changed, record["questions"]), *_probes_changed(record["probes"])]
    if not points:
        points = [Point("Nothing to compare", "The runs share no unit.", OPEN)]
    return Verdict(tuple(points), *_next_of_change(record["after"], {p.tone for p in points}))


def _next_of_change(after: dict[str, Any], tones: set[str]) -> tuple[str, str]:
    """Why, and the command; predictions made elsewhere have no model to go on with."""
    model, command = after.get("model") or {}, str(after.get("command") or "kvfix eval")
    if not model:
        return "The second run was made by:", command
    look = f"kvfix diagnose {_words(model)}{_carried(after)}"
    if LOSS in tones:
        return "Find where the second run loses it:", look
    if OPEN in tones and "--limit" in command:
        return (
            "Measure more units in both runs, so that a difference can show:",
            _again(after, "--limit", str(_more(after))),
        )
    if OPEN in tones:
        return (
            "Measure other data in both runs, so that a difference can show:",
            _again(after, "--data", "NAME=DIR"),
        )
    if model.get("adapter"):
        return (
            "Add the adapter into the weights, to serve the model without PEFT:",
            f"kvfix merge {_words(model)} --out merged",
        )
    return "Look at what each layer of the second run holds:", look


def _answers_changed(q: dict[str, Any]) -> Point:
    macro, micro = q["macro"], q["micro"]
    low, high = macro["ci"] or (None, None)
    head = f"Answers to {q['n']} questions"
    if q["clusters"] < FEWEST_CLUSTERS:
        return Point(head, "Too few to tell.", OPEN)
    span = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    text = (
        f"{100 * macro['before']:.1f} % right before, {100 * macro['after']:.1f} % after, "
        f"{100 * macro['value']:+.1f} points{span} as a mean over tasks: "
        f"{micro['fixed']} fixed, {micro['broken']} broken."
    )
    if low is None or high is None or low <= 0 <= high:
        return Point(head, f"No clear difference: {text}", OPEN)
    better = macro["value"] > 0
    text = f"Clearly {'better' if better else 'worse'}: {text}"
    unread = q["format"]["fixed_unread"]
    if better and unread:
        text += f" Of the fixed ones {unread} had no readable answer before."
    return Point(head, text, WELL if better else LOSS)


def _probes_changed(probes: Sequence[dict[str, Any]]) -> Iterable[Point]:
    if not probes:
        return
    clear = [r for r in probes if r.get("clear")]
    fell = [r for r in clear if r["value"] < 0]
    head = "What the stages hold"
    if not clear:
        yield Point(head, f"No clear difference in {_count(len(probes), 'probe')}.", WELL)
    else:
        yield Point(
            head,
            f"{_count(len(clear) - len(fell), 'probe')} of {len(probes)} clearly higher, "
            f"{len(fell)} clearly lower.",
            LOSS if fell else WELL,
        )
