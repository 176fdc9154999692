"""What a diagnosis of image keys says, in sentences with numbers and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvfix.diagnose.keys.artifacts import TASK, KeyDiagnosis
from kvfix.diagnose.keys.values import CellScores
from kvfix.eval.stats.bootstrap import Interval
from kvfix.findings import FEWEST_CLUSTERS, Finding


def key_findings(
    diagnosis: KeyDiagnosis, values: CellScores | None = None, *, seed: int = 0
) -> list[Finding]:
    """Findings, negative ones included: how many, where, since when, how sure, and sinks apart.

    Args:
        diagnosis: Of a model's keys.
        values: Scores of the values at chosen keys, where there were any.
        seed: Of the bootstrap over episodes.
    """
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
    got, c = d.shares.model, d.calibration
    low, high = float(got.low_S[0]), float(got.high_S[0])
    clear = low > d.alpha
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
    text = (
        f"Input-agnostic image keys: {_figures(got)} of {d.r_LHP.size} keys{verdict}; tau "
        f"{c.tau:.2g}, {null}{left_out}. Lowest r "
        f"{d.r_LHP.min():.2g}, median {np.median(d.r_LHP):.2g}."
    )
    return _finding("keys.share", text, d, float(got.value_S[0]), (low, high), clear=clear)


def _layers(d: KeyDiagnosis) -> Finding:
    got = d.shares.layer_L
    top, above = int(np.argmax(got.value_S)), np.flatnonzero(d.shares.clear_L).tolist()
    if above:
        named = ", ".join(map(str, above))
        start = f"{_layers_word(above)} {named} of {len(got.value_S)} hold more agnostic keys than"
        text = (
            f"{start} the false-positive rate of {d.alpha:.3f} explains; most are in layer {top}: "
            f"{_figures(got, top)}."
        )
    elif got.value_S[top] > 0:
        text = (
            f"No layer holds more agnostic keys than the false-positive rate of {d.alpha:.3f} "
            f"explains; most are in layer {top}: {_figures(got, top)}."
        )
    else:
        text = f"No layer of {len(got.value_S)} holds an agnostic key: {_figures(got, top)}."
    ci = (float(got.low_S[top]), float(got.high_S[top]))
    more: dict[str, Any] = {"layer": top, "layers": above, "clear": bool(above)}
    return _finding("keys.layers", text, d, float(got.value_S[top]), ci, **more)


def _heads(d: KeyDiagnosis) -> Finding:
    got, heads = d.shares.head_LH, d.r_LHP.shape[1]
    top = int(np.argmax(got.value_S))
    layer, head = divmod(top, heads)
    value, ci = float(got.value_S[top]), (float(got.low_S[top]), float(got.high_S[top]))
    whole = int((got.value_S == 1).sum())
    if value > 0:
        text = (
            f"Most agnostic head: KV head {head} of layer {layer}, {_figures(got, top)} of its "
            f"cells; {whole} of {len(got.value_S)} heads are agnostic at every cell."
        )
    else:
        text = f"No KV head out of {len(got.value_S)} has an agnostic key: {_figures(got, top)}."
    return _finding("keys.heads", text, d, value, ci, layer=layer, head=head, clear=value > 0)


def _split(d: KeyDiagnosis) -> Finding:
    layers = np.flatnonzero(d.split_L).tolist()
    n = len(d.split_L)
    share = float(d.split_L.mean())
    rule = "two groups with a valley between, each at least 5 % of the layer's keys"
    if d.split_from is not None:
        text = (
            f"From layer {d.split_from} of {n} on, image keys split into dependent and agnostic "
            f"ones ({rule}): layers {', '.join(map(str, layers))}, {share:.3f} of all layers "
            f"(n = {d.n})."
        )
    elif layers:
        text = (
            f"Image keys split in {_layers_word(layers).lower()} {', '.join(map(str, layers))} of "
            f"{n}, {share:.3f} of all, but not from some layer on ({rule}; n = {d.n})."
        )
    else:
        text = f"No layer of {n} shows split image keys ({rule}): {share:.3f} (n = {d.n})."
    more: dict[str, Any] = {"layer": d.split_from, "layers": layers, "clear": bool(layers)}
    return _finding("keys.split", text, d, share, None, **more)


def _halves(d: KeyDiagnosis) -> Finding:
    a, b = d.halves.sizes
    if np.isnan(d.halves.jaccard):
        text = f"Two halves of the images agree that no key is agnostic (n = {d.n})."
        return _finding("keys.halves", text, d, None, None, clear=True)
    value, chance = d.halves.jaccard, d.halves.chance
    text = (
        f"Two halves of the images find {a} and {b} agnostic keys, overlap (Jaccard) {value:.3f}; "
        f"{chance:.3f} by chance (n = {d.n})."
    )
    return _finding("keys.halves", text, d, value, None, chance=chance, clear=value > chance)


def _cosines(d: KeyDiagnosis) -> Finding:
    image = {True: "agnostic", False: "other"}
    parts, c = [], d.cosines
    for flag, cells_LH in ((True, c.agnostic_LH), (False, c.dependent_LH)):
        at = d.agnostic_LHP if flag else ~d.agnostic_LHP
        if at.any():
            cells = f"{np.nanmean(cells_LH):.3f}" if not np.isnan(cells_LH).all() else "none"
            parts.append(
                f"at {image[flag]} keys {c.images_LHP[at].mean():.3f} between images, {cells} "
                "between the mean keys of two cells"
            )
    value = float(c.images_LHP.mean())
    text = f"Mean cosine of image keys: {value:.3f} between images; {'; '.join(parts)} (n = {d.n})."
    return _finding("keys.cosine", text, d, value, None, clear=True)


def _sinks(d: KeyDiagnosis) -> Finding:
    s = d.sinks
    share_L = s.rate_LP.mean(1)
    top, value = int(np.argmax(share_L)), float(share_L.max())
    rule = "an activation above 100 and 1000 times the median"
    if value == 0:
        text = f"Sinks: no image token has a massive activation, {value:.3f} ({rule}; n = {d.n})."
    else:
        text = (
            f"Sinks ({rule}): most before layer {top}, {value:.3f} of its image tokens (n = {d.n})"
            f". Keys at sinks and agnostic {s.both}, agnostic only {s.agnostic_only}, at sinks "
            f"only {s.sink_only}."
        )
    counts = {"both": s.both, "agnostic_only": s.agnostic_only, "sink_only": s.sink_only}
    return _finding("keys.sinks", text, d, value, None, layer=top, clear=value > 0, **counts)


def _values(d: KeyDiagnosis, scores: CellScores, seed: int) -> list[Finding]:
    """Accuracy of values at chosen keys against other heads at the same cells, and the control."""
    gap, beyond = scores.gap(seed=seed), scores.beyond_random(seed=seed)
    plain = scores.accuracy
    if gap is None or beyond is None:
        text = (
            f"Whether values at {scores.chosen} are worse cannot be told: no cell has them in some "
            f"heads of a layer and not in others (n = {len(scores.ids)})."
        )
        finding = _finding("keys.values", text, d, None, None, clear=False)
        return [{**finding, "n": len(scores.ids)}]
    text = (
        f"Foreground accuracy of values at {scores.chosen} less that of the layers' other heads at "
        f"the same cells: {_figures(gap, signed=True)}{_certain(gap)}. Plain accuracy "
        f"{plain['chosen']:.3f}, at the layers' other keys {plain['other']:.3f}, by the place "
        f"alone {plain['place']:.3f}."
    )
    control = (
        f"The same gap for {scores.chosen} less that for equally many random keys: "
        f"{_figures(beyond, signed=True)}{_certain(beyond)}."
    )
    out = []
    for name, sentence, got in (
        ("keys.values", text, gap),
        ("keys.values_random", control, beyond),
    ):
        low, high = float(got.low_S[0]), float(got.high_S[0])
        ci = None if np.isnan(low) else (low, high)
        finding = _finding(name, sentence, d, float(got.value_S[0]), ci, clear=_is_clear(got))
        out.append({**finding, "n": int(got.n_S[0])})
    return out


def _is_clear(change: Interval) -> bool:
    enough = int(change.clusters_S[0]) >= FEWEST_CLUSTERS
    return bool(enough and (change.low_S[0] > 0 or change.high_S[0] < 0))


def _certain(change: Interval) -> str:
    if int(change.clusters_S[0]) < FEWEST_CLUSTERS:
        return " (too few clusters to tell)"
    return "" if _is_clear(change) else " (the interval holds 0: no clear difference)"


def _layers_word(layers: list[int]) -> str:
    return "Layer" if len(layers) == 1 else "Layers"


def _finding(
    name: str,
    text: str,
    d: KeyDiagnosis,
    value: float | None,
    ci: tuple[float, float] | None,
    **more: Any,
) -> Finding:
    return {
        "id": name,
        "text": text,
        "task": TASK,
        "dataset": d.dataset,
        "value": value,
        "ci": None if ci is None else list(ci),
        "n": d.n,
        **more,
    }


def _figures(got: Interval, i: int = 0, *, signed: bool = False) -> str:
    value, low, high = float(got.value_S[i]), float(got.low_S[i]), float(got.high_S[i])
    form = "+.3f" if signed else ".3f"
    interval = "no interval" if np.isnan(low) else f"{low:{form}}, {high:{form}}"
    return f"{value:{form}} [{interval}] (n = {int(got.n_S[i])})"
