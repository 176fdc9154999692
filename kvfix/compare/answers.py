"""Answers to multiple-choice questions before and after: by how much, how surely, and why.

A model that only learns to write its answer as asked gains accuracy without seeing any better. So
beside every difference stand the unread answers, the letters chosen, the difference on the
questions whose answer was read both times, and (where the rows have `logprob_correct`) the
difference of the answers by option-letter log-probability, which need no reading.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from kvfix.compare.align import QuestionPair
from kvfix.data.units import MCQ
from kvfix.eval.stats.bootstrap import paired_bootstrap
from kvfix.eval.stats.paired import (
    Change,
    Flips,
    MacroMicro,
    flips,
    holm,
    mcnemar,
    minimum_detectable,
    stratified_paired_bootstrap,
)
from kvfix.findings import Estimate, Finding, ends, excludes_0
from kvfix.runs.rows import AnswerRow

ALPHA = 0.05
UNREAD = "unparsed"  # its name among the letters
LOGPROB = "logprob_correct"  # 0 or 1: the most probable option letter is the right one


class _Draws(NamedTuple):
    """How questions are drawn by the bootstrap: in clusters, within their task."""

    tasks: list[str]
    clusters: list[str]
    resamples: int
    seed: int

    def members(self) -> dict[str, np.ndarray]:
        """Which questions are of a task, bool (N,)."""
        return {
            task: np.array([t == task for t in self.tasks]) for task in dict.fromkeys(self.tasks)
        }

    def change(self, was: np.ndarray, now: np.ndarray) -> MacroMicro:
        """The difference with its intervals."""
        return stratified_paired_bootstrap(
            *(was, now, self.tasks, self.clusters), resamples=self.resamples, seed=self.seed
        )

    def kept(self, use_N: np.ndarray) -> _Draws:
        """Of some questions alone."""
        tasks, clusters = (
            [x for x, use in zip(xs, use_N, strict=True) if use]
            for xs in (self.tasks, self.clusters)
        )
        return self._replace(tasks=tasks, clusters=clusters)


def answer_changes(pair: QuestionPair, *, resamples: int, seed: int) -> dict[str, Any]:
    """Everything that `compare.json` says about one set of questions; shares in [0, 1]."""
    tasks = [r.subtask for r in pair.before]
    clusters = [r.cluster for r in pair.before]
    draws = _Draws(tasks, clusters, resamples, seed)
    was, now = (_column(rows, "correct") for rows in (pair.before, pair.after))
    rows = [_task(task, at_N, was, now, draws) for task, at_N in draws.members().items()]
    for row, p in zip(rows, holm([r["p"] for r in rows]), strict=True):
        row["p_holm"] = float(p)
    return {
        "dataset": pair.dataset,
        "n": len(tasks),
        "clusters": len(set(zip(tasks, clusters, strict=True))),
        **_both_means(was, now, draws),
        "tasks": rows,
        "format": _format(pair, was, now, draws),
        "logprob": _logprob(pair, draws),
    }


def answer_findings(changes: dict[str, Any]) -> list[Finding]:
    """What is clear: macro, micro, tasks after Holm, unread answers, and the letter that moved."""
    dataset, n = changes["dataset"], changes["n"]
    found = []
    for name in ("macro", "micro"):
        row = changes[name]
        if excludes_0(row["ci"]):
            text = f"{name.capitalize()} accuracy {_moves(row)} ({len(changes['tasks'])} tasks)."
            found.append(_finding(f"compare.{name}", text, dataset, row, n))
    for row in changes["tasks"]:
        if row["p_holm"] < ALPHA:
            text = (
                f"{row['task'].replace('_', ' ')}: accuracy {_moves(row)}; {row['fixed']} fixed, "
                f"{row['broken']} broken, Holm-adjusted p = {row['p_holm']:.2g}."
            )
            found.append(_finding("compare.task", text, dataset, row, row["n"]))
    form = changes["format"]
    if form["unparsed"]["p"] < ALPHA:
        row, read = form["unparsed"], form["read_twice"]
        text = (
            f"Format: {_percent(row['after'])} of the answers could not be read, "
            f"{_percent(row['before'])} before. Of {changes['micro']['fixed']} fixed questions "
            f"{form['fixed_unread']} had no readable answer before; of "
            f"{changes['micro']['broken']} broken ones {form['broken_unread']} have none now."
        )
        if read is not None:
            text += f" On the {read['n']} questions read both times micro accuracy {_moves(read)}."
        found.append(_finding("compare.format", text, dataset, row, n))
    letters = [r for r in form["letters"] if r["p_holm"] < ALPHA and r["letter"] != UNREAD]
    if letters:
        row = max(letters, key=lambda r: abs(r["value"]))
        text = (
            f"Letters: ({row['letter']}) is chosen in {_percent(row['after'])} of the questions, "
            f"{_percent(row['before'])} before; it is right in {_percent(row['right'])}."
        )
        found.append(_finding("compare.letters", text, dataset, row, n))
    return found


def _task(
    task: str, at_N: np.ndarray, was: np.ndarray, now: np.ndarray, draws: _Draws
) -> dict[str, Any]:
    clusters = draws.kept(at_N).clusters
    got = paired_bootstrap(
        was[at_N], now[at_N], clusters, resamples=draws.resamples, seed=draws.seed
    )
    changed = flips(was[at_N], now[at_N])
    change = Change(float(got.value_S[0]), float(got.low_S[0]), float(got.high_S[0]))
    return {
        "task": task,
        **_figures(was[at_N].mean(), now[at_N].mean(), change),
        **_counts(changed),
        "minimum_detectable": minimum_detectable([changed]),
    }


def _both_means(was: np.ndarray, now: np.ndarray, draws: _Draws) -> dict[str, Any]:
    got = draws.change(was, now)
    at = list(draws.members().values())
    a_task = [flips(was[a], now[a]) for a in at]
    before, after = (float(np.mean([x[a].mean() for a in at])) for x in (was, now))
    return {
        "macro": {
            **_figures(before, after, got.macro),
            "tasks": len(at),
            "n": len(was),
            "minimum_detectable": minimum_detectable(a_task, macro=True),
        },
        "micro": {
            **_figures(was.mean(), now.mean(), got.micro),
            **_counts(flips(was, now)),
            "minimum_detectable": minimum_detectable(a_task),
        },
    }


def _format(pair: QuestionPair, was: np.ndarray, now: np.ndarray, draws: _Draws) -> dict[str, Any]:
    """Format or perception? Unread answers, letters, and the difference where both were read."""
    unread = [_column(rows, "unparsed") for rows in (pair.before, pair.after)]
    fixed, broken = (was < now), (was > now)
    both = (unread[0] == 0) & (unread[1] == 0)
    read = None
    if both.any():
        change = draws.kept(both).change(was[both], now[both]).micro
        read = _figures(was[both].mean(), now[both].mean(), change)
        read |= _counts(flips(was[both], now[both]))
        read["share_of_micro"] = float((now - was)[both].sum() / len(was))
    unparsed = _figures(unread[0].mean(), unread[1].mean(), draws.change(*unread).micro)
    unparsed["p"] = mcnemar(int((unread[0] < unread[1]).sum()), int((unread[0] > unread[1]).sum()))
    missing = [sum(bool(r.missing) for r in rows) for rows in (pair.before, pair.after)]
    letters = _letters(pair, draws)
    return {
        "unparsed": unparsed,
        "missing": {"before": missing[0], "after": missing[1]},
        "fixed_unread": int((fixed & (unread[0] == 1)).sum()),
        "broken_unread": int((broken & (unread[1] == 1)).sum()),
        "read_twice": read,
        "letters": letters,
        "letter_shift": sum(abs(r["value"]) for r in letters) / 2,  # total variation distance
    }


def _letters(pair: QuestionPair, draws: _Draws) -> list[dict[str, Any]]:
    """Share of each letter before and after, and the share of questions where it is right."""
    chosen = [[_letter(r) for r in rows] for rows in (pair.before, pair.after)]
    right = Counter(r.answer for r in pair.before)
    names = [*sorted({*chosen[0], *chosen[1], *right} - {UNREAD}), UNREAD]
    n, rows = len(pair.before), []
    for name in names:
        was, now = (np.array([x == name for x in side]) for side in chosen)
        changed = flips(was, now)
        rows.append(
            {
                "letter": name,
                **_figures(was.mean(), now.mean(), draws.change(was, now).micro),
                "right": right[name] / n,
                "p": mcnemar(changed.fixed, changed.broken),
            }
        )
    for row, p in zip(rows, holm([r["p"] for r in rows]), strict=True):
        row["p_holm"] = float(p)
    return rows


def _letter(row: AnswerRow) -> str:
    return UNREAD if row.unparsed or row.letter is None else row.letter


def _logprob(pair: QuestionPair, draws: _Draws) -> dict[str, Any] | None:
    if any(row.logprob_correct is None for row in (*pair.before, *pair.after)):
        return None
    was, now = (_column(rows, LOGPROB) for rows in (pair.before, pair.after))
    return _both_means(was, now, draws)


def _column(rows: list[AnswerRow], key: str) -> np.ndarray:
    return np.array([float(getattr(row, key)) for row in rows])


def _counts(changed: Flips) -> dict[str, Any]:
    return {
        "n": changed.n,
        "fixed": changed.fixed,
        "broken": changed.broken,
        "discordance": changed.discordance,
        "p": mcnemar(changed.fixed, changed.broken),
    }


def _figures(before: float, after: float, change: Change) -> dict[str, Any]:
    return {
        "before": float(before),
        "after": float(after),
        "value": change.value,
        "ci": None if np.isnan(change.low) else [change.low, change.high],
    }


def _finding(name: str, words: str, dataset: str, row: dict[str, Any], n: int) -> Finding:
    got = Estimate(row["value"], ends(row["ci"]), n)
    more = {"metric": "accuracy"}
    return Finding(name, words, got, MCQ, dataset, clear=True, percent=True, more=more)


def _moves(row: dict[str, Any]) -> str:
    value = row["value"]
    verb = "rises" if value > 0 else "falls" if value < 0 else "stays"
    ci = row["ci"]
    ends = "no interval" if ci is None else f"{100 * ci[0]:+.1f}, {100 * ci[1]:+.1f}"
    return (
        f"{verb} from {_percent(row['before'])} to {_percent(row['after'])}, {100 * value:+.1f} "
        f"points [{ends}]"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
