"""What a text before the image does to a probe, in numbers and sentences: paired differences of
the conditions of `prefix`.
"""

from __future__ import annotations

import numpy as np

from kvfix.diagnose.flow import FEWEST_CLUSTERS, Finding, best_value_layer
from kvfix.diagnose.prefix import CONTRASTS, PrefixRuns
from kvfix.eval.results import Result, Table, site_result
from kvfix.eval.stats import Interval, paired_bootstrap

SAID = {
    "none": "no prefix",
    "correct": "the right name before the image",
    "wrong": "a wrong name",
    "neutral": "a neutral text",
}


def prefix_results(found: PrefixRuns, *, seed: int = 0) -> list[Result]:
    """Paired differences at every site, `control` naming the contrast (`correct-neutral`)."""
    results: list[Result] = []
    for after, before in CONTRASTS:
        pair = _pair(found, after, before)
        if pair is None:
            continue
        now, was = pair
        got = paired_bootstrap(was.score_NS, now.score_NS, now.clusters, seed=seed)
        units = found.runs[after].units
        results += [
            site_result(
                units,
                site,
                f"{now.metric} difference",
                got,
                s,
                control=f"prefix {after} - {before}",
            )
            for s, site in enumerate(now.sites)
        ]
    return results


def _pair(found: PrefixRuns, after: str, before: str) -> tuple[Table, Table] | None:
    """Two conditions over the units that both scored, in one order."""
    sides = [list(found.runs[c].rows) for c in (after, before)]
    shared = set.intersection(*({r["id"] for r in side} for side in sides))
    now, was = (Table(r for r in side if r["id"] in shared) for side in sides)
    return (now, was) if now.ids else None


def prefix_findings(found: PrefixRuns, *, seed: int = 0) -> list[Finding]:
    """What each contrast does at the value layer that is best without a prefix.

    The layer is chosen on one half of the clusters without a prefix, the difference is taken on
    the other half. Layer 0 has no say: its values come before any attention, so that no text can
    move them. Beside that the mean over all other layers, which chooses nothing, on all units.
    """
    plain = Table(row for row in found.runs["none"].rows if row["layer"] != 0)
    best = best_value_layer(plain, seed=seed) if plain.ids else None
    if best is None:
        return []
    reporting = {u for u, use in zip(plain.ids, best.report_N, strict=True) if use}
    findings = []
    for after, before in CONTRASTS:
        pair = _pair(found, after, before)
        if pair is not None:
            findings.append(_contrast(found, pair, (after, before), best.layer, reporting, seed))
    return findings


def _contrast(
    found: PrefixRuns,
    pair: tuple[Table, Table],
    names: tuple[str, str],
    layer: int,
    reporting: set[str],
    seed: int,
) -> Finding:
    now, was = pair
    rows = np.array([u in reporting for u in now.ids])
    column = next(c for c in now.columns("value") if now.sites[c].layer == layer)
    got = paired_bootstrap(
        was.score_NS[rows, column],
        now.score_NS[rows, column],
        [c for c, use in zip(now.clusters, rows, strict=True) if use],
        seed=seed,
    )
    reached = [c for c in now.columns("value") if now.sites[c].layer != 0]
    everywhere = paired_bootstrap(
        was.score_NS[:, reached].mean(1), now.score_NS[:, reached].mean(1), now.clusters, seed=seed
    )
    value, low, high = (float(x[0]) for x in (got.value_S, got.low_S, got.high_S))
    clear, mean_clear = _is_clear(got), _is_clear(everywhere)
    enough = int(got.clusters_S[0]) >= FEWEST_CLUSTERS
    mean, mean_low, mean_high = (
        float(x[0]) for x in (everywhere.value_S, everywhere.low_S, everywhere.high_S)
    )
    units = found.runs[names[0]].units
    task = units.task.replace("_", " ").capitalize()
    where = "" if units.dataset == "scenes" else f" ({units.dataset})"
    certain = "" if clear else " (no clear difference)" if enough else " (too few clusters to tell)"
    text = (
        f"{task}{where}: {SAID[names[0]]} against {SAID[names[1]]} moves {now.metric} of value "
        f"layer {layer} by {value:+.3f} [{low:+.3f}, {high:+.3f}] (n = {int(got.n_S[0])})"
        f"{certain}; the mean over layers from 1 on by {mean:+.3f} [{mean_low:+.3f}, "
        f"{mean_high:+.3f}] (n = {int(everywhere.n_S[0])}{', clear' if mean_clear else ''})."
    )
    return {
        "id": f"prefix.{names[0]}_{names[1]}",
        "text": text,
        "task": units.task,
        "dataset": units.dataset,
        "value": value,
        "ci": None if np.isnan(low) else [low, high],
        "n": int(got.n_S[0]),
        "layer": layer,
        "clear": clear,
        "mean_over_layers": {
            "value": mean,
            "ci": None if np.isnan(mean_low) else [mean_low, mean_high],
            "n": int(everywhere.n_S[0]),
            "clear": mean_clear,
        },
    }


def _is_clear(got: Interval) -> bool:
    enough = int(got.clusters_S[0]) >= FEWEST_CLUSTERS
    return bool(enough and (got.low_S[0] > 0 or got.high_S[0] < 0))
