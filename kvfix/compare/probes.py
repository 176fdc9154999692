"""Probe scores before and after: paired differences at every site, and at the four that matter.

The best value layer is chosen on one half of BEFORE's clusters and compared on the other half: a
layer that was lucky before is not held against AFTER, and AFTER has no say in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kvfix.compare.align import ProbePair
from kvfix.diagnose.best_layer import best_value_layer
from kvfix.eval.site import Site
from kvfix.eval.stats.bootstrap import Interval, paired_bootstrap
from kvfix.eval.stats.paired import Ratio, paired_ratio_bootstrap
from kvfix.findings import PLACES, Estimate, Finding, ends, excludes_0, title
from kvfix.runs.rows import full_name


class ProbeChanges(NamedTuple):
    """Flat results of every shared site, the headline rows, findings and notes."""

    results: list[dict[str, Any]]
    headlines: list[dict[str, Any]]
    findings: list[Finding]
    notes: list[str]


class _Place(NamedTuple):
    name: str
    site: Site
    rows_N: np.ndarray
    held_out: bool


def probe_changes(
    pairs: Sequence[ProbePair], *, choice_seed: int, resamples: int, seed: int
) -> ProbeChanges:
    """Compare every probe.

    `choice_seed` is the seed of the run BEFORE: the halves are those of its own report. Headline
    rows carry `ci`, a 95 % interval, and `ci_all`, which holds for all tasks at once (Bonferroni);
    a finding is a difference whose `ci_all` leaves out 0.
    """
    out = ProbeChanges([], [], [], [])
    together = 1 - 0.05 / max(len(pairs), 1)
    for pair in pairs:
        out.results.extend(_every_site(pair, resamples, seed))
        places, notes = _places(pair, choice_seed)
        out.notes.extend(notes)
        for place in places:
            rows = _headline(pair, place, together, resamples, seed)
            out.headlines.extend(rows)
            out.findings.extend(_finding(row) for row in rows if row["clear"])
    return out


def _every_site(pair: ProbePair, resamples: int, seed: int) -> list[dict[str, Any]]:
    got = paired_bootstrap(
        pair.before_NS, pair.after_NS, pair.clusters, resamples=resamples, seed=seed
    )
    return [
        {
            **pair.name.entries,
            **site._asdict(),
            "metric": pair.metric,
            **_means(pair.before_NS[:, s], pair.after_NS[:, s]),
            **_figures(got, s),
        }
        for s, site in enumerate(pair.sites)
    ]


def _places(pair: ProbePair, choice_seed: int) -> tuple[list[_Place], list[str]]:
    everyone = np.ones(len(pair.ids), bool)
    # The rows of `kvfix score` have no site: the predictions were made elsewhere.
    places = [_Place("predictions", s, everyone, False) for s in pair.sites if not s.site]
    notes: list[str] = []
    for name in ("vision", "projector"):
        if Site(name) in pair.sites:
            places.append(_Place(name, Site(name), everyone, False))
    whole = pair.whole_before
    best = best_value_layer(whole, seed=choice_seed)
    if best is None:
        return places, notes
    title = str(pair.name)
    site, last = Site("value", best.layer), whole.sites[whole.columns("value")[-1]]
    reports = {name for name, use in zip(whole.ids, best.report_N, strict=True) if use}
    rows_N = np.array([name in reports for name in pair.ids])
    if site not in pair.sites:
        notes.append(f"{title}: AFTER has no value layer {best.layer}, the best of BEFORE.")
    elif not rows_N.any():
        notes.append(
            f"{title}: no shared unit lies in the half of BEFORE that did not choose the best "
            "layer, so it is not compared there."
        )
    else:
        places.append(_Place("best", site, rows_N, best.honest))
        if not best.honest:
            notes.append(
                f"{title}: too few clusters to choose the best layer on one half and compare on "
                "the other; BEFORE is flattered at that layer."
            )
    if last in pair.sites:
        places.append(_Place("last", last, everyone, False))
    return places, notes


def _headline(
    pair: ProbePair, place: _Place, together: float, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """The row of the probe's own metric, and one of the pooled ratio where the probe has one."""
    s, rows_N = pair.sites.index(place.site), place.rows_N
    before_N, after_N = pair.before_NS[rows_N, s], pair.after_NS[rows_N, s]
    clusters = [c for c, use in zip(pair.clusters, rows_N, strict=True) if use]
    one, all_tasks = (
        paired_bootstrap(before_N, after_N, clusters, level=level, resamples=resamples, seed=seed)
        for level in (0.95, together)
    )
    found = [_row(pair, place, pair.metric, _means(before_N, after_N), one, all_tasks)]
    if pair.pooled is not None:
        was, now = (
            Ratio(r.part[rows_N, s], r.whole[rows_N, s])
            for r in (pair.pooled.before, pair.pooled.after)
        )
        classes = pair.pooled.classes
        strata = None if classes is None else np.array(classes)[rows_N].tolist()
        one, all_tasks = (
            paired_ratio_bootstrap(
                *(was, now, clusters), strata=strata, level=level, resamples=resamples, seed=seed
            )
            for level in (0.95, together)
        )
        ratios = {"before": _ratio(was, strata), "after": _ratio(now, strata)}
        found.append(_row(pair, place, pair.pooled.metric, ratios, one, all_tasks))
    return found


def _row(
    pair: ProbePair,
    place: _Place,
    metric: str,
    means: dict[str, float | None],
    one: Interval,
    all_tasks: Interval,
) -> dict[str, Any]:
    together = _figures(all_tasks, 0)["ci"]
    return {
        **pair.name.entries,
        "place": place.name,
        **place.site._asdict(),
        "metric": metric,
        **means,
        **_figures(one, 0),
        "ci_all": together,
        "clear": excludes_0(together),
        "held_out": place.held_out,
    }


def _finding(row: dict[str, Any]) -> Finding:
    got = Estimate(row["value"], ends(row["ci"]), row["n"])
    where = PLACES[row["place"]].where.format(layer=row["layer"])
    words = (
        f"AFTER {'gains' if row['value'] > 0 else 'loses'} {abs(row['value']):.3f} {row['metric']} "
        f"{where}, from {row['before']:.3f} to {row['after']:.3f}, difference "
        f"{got.said(signed=True)}."
    )
    task, dataset, subtask = row["task"], row["dataset"], row.get("subtask")
    more = {"metric": row["metric"]} | ({} if subtask is None else {"subtask": subtask})
    return Finding(
        *(f"compare.{row['place']}", words, got, task, dataset),
        subject=title(full_name(task, subtask), dataset),
        clear=True,
        more=more,
    )


def _means(before_N: np.ndarray, after_N: np.ndarray) -> dict[str, float | None]:
    both = ~np.isnan(before_N) & ~np.isnan(after_N)
    if not both.any():
        return {"before": None, "after": None}
    return {"before": float(before_N[both].mean()), "after": float(after_N[both].mean())}


def _ratio(pooled: Ratio, strata: list[str] | None) -> float | None:
    """Sum over sum; with strata the mean over those that have a ratio."""
    sums: dict[str, np.ndarray] = {}
    for label, *pair in zip(strata or [""] * len(pooled.part), *pooled, strict=True):
        sums[label] = sums.get(label, np.zeros(2)) + pair
    ratios = [part / whole for part, whole in sums.values() if whole]
    return float(np.mean(ratios)) if ratios else None


def _figures(got: Interval, s: int) -> dict[str, Any]:
    return Estimate.of(got, s).to_json()
