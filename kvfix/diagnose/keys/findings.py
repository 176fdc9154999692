"""What a diagnosis of image keys says: its rows of results, and sentences with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvfix.diagnose.keys.artifacts import KeyDiagnosis
from kvfix.diagnose.keys.values import CellScores
from kvfix.findings import Estimate, Finding
from kvfix.runs.rows import Result

TASK, BLOCKING = "image_keys", "key_blocking"


def key_results(diagnosis: KeyDiagnosis) -> list[Result]:
    """Rows of `results` in run.json: the share of agnostic keys by layer, and by head."""
    n_heads = diagnosis.r_LHP.shape[1]
    rows: list[Result] = []
    for by_head, got in ((False, diagnosis.shares.layer_L), (True, diagnosis.shares.head_LH)):
        for i, value in enumerate(got.value_S):
            rows.append(
                {
                    "task": TASK,
                    "dataset": diagnosis.dataset,
                    "split": "all",
                    "site": "key",
                    "layer": i // n_heads if by_head else i,
                    "head": i % n_heads if by_head else None,
                    "control": None,
                    "metric": "share input-agnostic",
                    "value": float(value),
                    "ci": [float(got.low_S[i]), float(got.high_S[i])],
                    "n": diagnosis.n,
                    "clusters": diagnosis.groups,
                    "cluster": "group of images",
                    "chance": diagnosis.alpha,
                    "ceiling": 1.0,
                }
            )
    return rows


def key_findings(
    diagnosis: KeyDiagnosis, values: CellScores | None = None, *, seed: int = 0
) -> list[Finding]:
    """Findings, negative ones included: how many, where, since when, how sure, and sinks apart."""
    out = [
        _share(diagnosis),
        _layers(diagnosis),
        _heads(diagnosis),
        _split(diagnosis),
        _halves(diagnosis),
        _cosines(diagnosis),
        _sinks(diagnosis),
    ]
    if values is not None:
        out += _values(diagnosis, values, seed)
    return out


def _share(d: KeyDiagnosis) -> Finding:
    got, c = Estimate.of(d.shares.model), d.calibration
    clear = got.ci is not None and got.ci[0] > d.alpha
    verdict = "" if clear else f", not above the stated false-positive rate of {d.alpha:.3f}"
    left_out = (
        f" ({c.heads_left_out} heads that are agnostic as a whole not shuffled)"
        if c.heads_left_out
        else ""
    )
    null = (
        "no head left to shuffle"
        if np.isnan(c.null_fpr)
        else f"{c.null_fpr:.4f} of shuffled keys below it"
    )
    words = (
        f"Input-agnostic image keys: {got.said()} of {d.r_LHP.size} keys{verdict}; tau "
        f"{c.tau:.2g}, {null}{left_out}. Lowest r "
        f"{d.r_LHP.min():.2g}, median {np.median(d.r_LHP):.2g}."
    )
    return _finding(d, "keys.share", words, got, clear)


def _layers(d: KeyDiagnosis) -> Finding:
    shares = d.shares.layer_L
    n, top = len(shares.value_S), int(np.argmax(shares.value_S))
    got, above = Estimate.of(shares, top), np.flatnonzero(d.shares.clear_L).tolist()
    rate = f"more agnostic keys than the false-positive rate of {d.alpha:.3f} explains"
    most = f"{rate}; most are in layer {top}: {got.said()}."
    if above:
        words = f"{_listed(above)} of {n} hold {most}"
    elif shares.value_S[top] > 0:
        words = f"No layer holds {most}"
    else:
        words = f"No layer of {n} holds an agnostic key: {got.said()}."
    return _finding(d, "keys.layers", words, got, bool(above), layer=top, layers=above)


def _heads(d: KeyDiagnosis) -> Finding:
    shares = d.shares.head_LH
    n, top = len(shares.value_S), int(np.argmax(shares.value_S))
    layer, head = divmod(top, d.r_LHP.shape[1])
    got, some = Estimate.of(shares, top), bool(shares.value_S[top] > 0)
    words = f"No KV head out of {n} has an agnostic key: {got.said()}."
    if some:
        words = (
            f"Most agnostic head: KV head {head} of layer {layer}, {got.said()} of its cells; "
            f"{int((shares.value_S == 1).sum())} of {n} heads are agnostic at every cell."
        )
    return _finding(d, "keys.heads", words, got, some, layer=layer, head=head)


def _split(d: KeyDiagnosis) -> Finding:
    layers, n = np.flatnonzero(d.split_L).tolist(), len(d.split_L)
    share = float(d.split_L.mean())
    rule = "two groups with a valley between, each at least 5 % of the layer's keys"
    if d.split_from is not None:
        words = (
            f"From layer {d.split_from} of {n} on, image keys split into dependent and agnostic "
            f"ones ({rule}): layers {', '.join(map(str, layers))}, {share:.3f} of all layers "
            f"(n = {d.n})."
        )
    elif layers:
        words = (
            f"Image keys split in {_listed(layers).lower()} of {n}, {share:.3f} of all, but not "
            f"from some layer on ({rule}; n = {d.n})."
        )
    else:
        words = f"No layer of {n} shows split image keys ({rule}): {share:.3f} (n = {d.n})."
    more: dict[str, Any] = {"layer": d.split_from, "layers": layers}
    return _finding(d, "keys.split", words, share, bool(layers), **more)


def _halves(d: KeyDiagnosis) -> Finding:
    a, b = d.halves.sizes
    value, chance = d.halves.jaccard, d.halves.chance
    if np.isnan(value):
        words = f"Two halves of the images agree that no key is agnostic (n = {d.n})."
        return _finding(d, "keys.halves", words, None, True)
    words = (
        f"Two halves of the images find {a} and {b} agnostic keys, overlap (Jaccard) {value:.3f}; "
        f"{chance:.3f} by chance (n = {d.n})."
    )
    return _finding(d, "keys.halves", words, value, value > chance, chance=chance)


def _cosines(d: KeyDiagnosis) -> Finding:
    parts, c = [], d.cosines
    for kind, cells_LH, at in (
        ("agnostic", c.agnostic_LH, d.agnostic_LHP),
        ("other", c.dependent_LH, ~d.agnostic_LHP),
    ):
        if at.any():
            cells = f"{np.nanmean(cells_LH):.3f}" if not np.isnan(cells_LH).all() else "none"
            parts.append(
                f"at {kind} keys {c.images_LHP[at].mean():.3f} between images, {cells} "
                "between the mean keys of two cells"
            )
    value = float(c.images_LHP.mean())
    words = f"Mean cosine of image keys: {value:.3f} between images; {'; '.join(parts)}"
    return _finding(d, "keys.cosine", f"{words} (n = {d.n}).", value, True)


def _sinks(d: KeyDiagnosis) -> Finding:
    s, share_L = d.sinks, d.sinks.rate_LP.mean(1)
    top, value = int(np.argmax(share_L)), float(share_L.max())
    rule = "an activation above 100 and 1000 times the median"
    words = f"Sinks: no image token has a massive activation, {value:.3f} ({rule}; n = {d.n})."
    if value > 0:
        words = (
            f"Sinks ({rule}): most before layer {top}, {value:.3f} of its image tokens (n = {d.n})"
            f". Keys at sinks and agnostic {s.both}, agnostic only {s.agnostic_only}, at sinks "
            f"only {s.sink_only}."
        )
    counts = {"both": s.both, "agnostic_only": s.agnostic_only, "sink_only": s.sink_only}
    return _finding(d, "keys.sinks", words, value, value > 0, layer=top, **counts)


def _values(d: KeyDiagnosis, scores: CellScores, seed: int) -> list[Finding]:
    """Accuracy of values at chosen keys against other heads at the same cells, and the control."""
    gap, beyond = scores.gap(seed=seed), scores.beyond_random(seed=seed)
    plain = scores.accuracy
    if gap is None or beyond is None:
        words = (
            f"Whether values at {scores.chosen} are worse cannot be told: no cell has them in some "
            f"heads of a layer and not in others (n = {len(scores.ids)})."
        )
        none = Estimate(None, None, len(scores.ids))
        return [_finding(d, "keys.values", words, none, False)]
    here, control = Estimate.of(gap), Estimate.of(beyond)
    words = (
        f"Foreground accuracy of values at {scores.chosen} less that of the layers' other heads at "
        f"the same cells: {here.said(signed=True)}{here.doubt()}. Plain accuracy "
        f"{plain['chosen']:.3f}, at the layers' other keys {plain['other']:.3f}, by the place "
        f"alone {plain['place']:.3f}."
    )
    against = (
        f"The same gap for {scores.chosen} less that for equally many random keys: "
        f"{control.said(signed=True)}{control.doubt()}."
    )
    return [
        _finding(d, "keys.values", words, here, here.clear),
        _finding(d, "keys.values_random", against, control, control.clear),
    ]


def _listed(layers: list[int]) -> str:
    return ("Layer " if len(layers) == 1 else "Layers ") + ", ".join(map(str, layers))


def _finding(
    d: KeyDiagnosis,
    name: str,
    words: str,
    number: Estimate | float | None,
    clear: bool,
    **more: Any,
) -> Finding:
    estimate = number if isinstance(number, Estimate) else Estimate(number, None, d.n)
    return Finding(name, words, estimate, TASK, d.dataset, clear=bool(clear), more=more)


def effect_finding(record: dict[str, Any], *, dataset: str) -> Finding:
    """What blocking keys does, as `effect_record` has it."""
    differences = record["differences"]
    against, base = (
        Estimate(d["value"], None if d["ci"] is None else tuple(d["ci"]), record["n"])
        for d in (differences["chosen_random"], differences["chosen_base"])
    )
    verb = {"text": "for the text", "image": "for later image tokens"}[record["queries"]]
    certain = (
        "" if differences["chosen_random"]["clear"] else " (no clear difference to random keys)"
    )
    means = record["means"]
    words = (
        f"Blocking {record['keys']} {verb}: {record['metric']} {means['base']:.3f} -> "
        f"{means['chosen']:.3f}, {means['random']:.3f} with equally many random keys; against the "
        f"base {base.said(signed=True, n=False)}, against random {against.said(signed=True)}"
        f"{certain}."
    )
    if record["skipped"]:
        words += (
            f" Left out: {record['skipped']} {record['unit']}s whose images lie on another grid "
            "than these keys, as several images in one prompt do where one alone is tiled."
        )
    name, clear = f"keys.block_{record['queries']}", differences["chosen_random"]["clear"]
    return Finding(name, words, against, BLOCKING, dataset, clear=clear)
