"""Findings: planted gains and losses are found with their sign, planted nothing is not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from curves import planted, rows

from kvfix.diagnose.best_layer import best_value_layer
from kvfix.diagnose.flow.findings import Curve, flow_findings
from kvfix.diagnose.flow.run import _reporting_ids, best_site
from kvfix.eval.results import Table
from kvfix.eval.site import Site
from kvfix.eval.stats.bootstrap import halves

LOSES_AT_PROJECTOR = planted(0.8, 0.5, [0.5, 0.7, 0.6, 0.4])
FLAT = planted(0.5, 0.5, [0.5, 0.5, 0.5, 0.5])


def findings(
    table: Table, *, dataset: str = "scenes", seed: int = 0, **controls: Table
) -> dict[str, dict[str, Any]]:
    curve = Curve("semantic_correspondence", dataset, "PCK@0.1", table, controls)
    found = [finding.to_json() for finding in flow_findings(curve, seed=seed)]
    assert len({f["id"] for f in found}) == len(found)
    return {f["id"]: f for f in found}


def numbers(finding: dict[str, Any]) -> tuple[float, float, float]:
    return finding["value"], *finding["ci"]


def test_each_planted_change_is_found_with_its_sign() -> None:
    found = findings(LOSES_AT_PROJECTOR)
    assert list(found) == ["flow.peak", "flow.projector", "flow.lm_gain", "flow.late_loss"]
    for name, planted_change, sentence in [
        ("flow.projector", -0.3, "The projector loses 0."),
        ("flow.lm_gain", +0.2, "The LM adds 0."),
        ("flow.late_loss", -0.3, "Later layers lose 0."),
    ]:
        value, low, high = numbers(found[name])
        assert low < planted_change < high and low <= value <= high
        assert low > 0 or high < 0
        assert f": {sentence}" in found[name]["text"] and "no clear" not in found[name]["text"]
    peak = found["flow.peak"]
    assert peak["layer"] == 1 and "best at layer 1 of 4" in peak["text"]
    assert "chance 0.100, ceiling of the grid 0.900" in peak["text"]
    assert "chosen on the other half" in peak["text"]
    assert "over the projector by value layer 1," in found["flow.lm_gain"]["text"]
    assert "from value layer 1 to the last, 3," in found["flow.late_loss"]["text"]


def test_opposite_changes_have_opposite_verbs() -> None:
    found = findings(planted(0.4, 0.7, [0.5, 0.3, 0.3]))
    assert "The projector adds 0." in found["flow.projector"]["text"]
    assert "The LM loses 0." in found["flow.lm_gain"]["text"]
    assert found["flow.projector"]["ci"][0] > 0 > found["flow.lm_gain"]["ci"][1]


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_is_planted_the_interval_holds_0_and_the_sentence_says_so(seed: int) -> None:
    found = findings(FLAT, seed=seed)
    for name in ("flow.projector", "flow.lm_gain"):
        _, low, high = numbers(found[name])
        assert low < 0 < high
        assert "(the interval holds 0: no clear difference)" in found[name]["text"]


def test_the_noise_of_a_flat_model_is_called_a_change_about_as_rarely_as_promised() -> None:
    clear = [
        "no clear" not in findings(planted(0.5, 0.5, [0.5] * 6, seed=s))["flow.lm_gain"]["text"]
        for s in range(25)
    ]
    assert (
        sum(clear) <= 4
    )  # 5 % of 25 are 1.25; a layer chosen and reported on the same units: many


def test_halves_of_whole_clusters_choose_and_report() -> None:
    best = best_value_layer(LOSES_AT_PROJECTOR)
    assert best is not None and best.honest
    clusters = np.array(LOSES_AT_PROJECTOR.clusters)
    assert best.report_N.sum() == 20
    assert not set(clusters[best.report_N]) & set(clusters[~best.report_N])


def test_the_layer_is_chosen_on_one_half_only_and_reported_on_the_other() -> None:
    """Layer 2 shines on the choosing half and fails on the other: an overfit that must show."""
    clusters = [f"c{i // 2}" for i in range(40)]
    chooses_N = halves(clusters, seed=5)
    scores = {("value", layer): np.full(40, 0.5) for layer in range(4)}
    scores["value", 2] = np.where(chooses_N, 0.9, 0.2)
    scores["value", 3] = np.where(chooses_N, 0.4, 0.95)  # best on all units, and on the others
    scores["projector", None] = np.full(40, 0.5)
    found = findings(Table(rows(scores)), seed=5)
    peak = found["flow.peak"]
    assert (peak["layer"], peak["n"]) == (2, 20)
    assert peak["value"] == pytest.approx(0.2)  # not 0.9, not the 0.55 of all units
    assert found["flow.lm_gain"]["value"] == pytest.approx(-0.3)
    assert found["flow.lm_gain"]["n"] == 20
    assert found["flow.late_loss"]["value"] == pytest.approx(0.75)


def test_the_best_of_many_noisy_layers_is_not_flattered() -> None:
    rng = np.random.default_rng(0)
    optimistic, reported = [], []
    for _ in range(30):
        table = Table(
            rows({("value", la): 0.5 + rng.normal(0, 0.2, 12) for la in range(30)}, a_cluster=1)
        )
        best = best_value_layer(table)
        assert best is not None
        optimistic.append(table.score_NS[~best.report_N, best.column].mean())
        reported.append(table.score_NS[best.report_N, best.column].mean())
    assert np.mean(optimistic) > 0.6 and abs(np.mean(reported) - 0.5) < 0.05


def test_a_paired_difference_sees_what_unpaired_ones_would_miss() -> None:
    found = findings(planted(0.5, 0.45, [0.5], noise=0.01))  # units differ by 0.2, stages by 0.05
    assert found["flow.projector"]["ci"][1] < 0


def test_a_peak_at_the_last_layer_loses_nothing_later() -> None:
    found = findings(planted(0.3, 0.3, [0.3, 0.5, 0.7]))
    assert found["flow.peak"]["layer"] == 2 and "flow.late_loss" not in found


def test_controls_are_compared_at_their_own_best_layer() -> None:
    table = planted(0.8, 0.6, [0.5, 0.7])
    random = planted(None, None, [0.4, 0.1])
    scores = {("reference", None): table.score_NS[:, 0] + 0.1}
    found = findings(table, random_weights=random, reference=Table(rows(scores)))
    assert found["flow.random_weights"]["value"] == pytest.approx(0.3, abs=0.03)
    assert "layer gains 0." in found["flow.random_weights"]["text"]
    assert "the same model with random weights" in found["flow.random_weights"]["text"]
    assert found["flow.reference"]["value"] == pytest.approx(-0.2, abs=0.03)
    assert "falls short by 0." in found["flow.reference"]["text"]
    assert "a bare vision encoder" in found["flow.reference"]["text"]


def test_a_control_is_read_where_the_best_layer_reports_and_nowhere_else() -> None:
    table = planted(0.8, 0.6, [0.5, 0.7])
    random = planted(None, None, [0.4, 0.1])
    reporting = {unit for *_, unit in _reporting_ids(Curve("t", "d", "m", table), 0)}
    assert 0 < len(reporting) < len(table.ids)
    scores = {("value", layer): random.score_NS[:, layer] for layer in range(2)}
    some = Table(row for row in rows(scores) if row.id in reporting)
    every, half = (findings(table, random_weights=c)["flow.random_weights"] for c in (random, some))
    assert (half["value"], half["ci"], half["n"]) == (every["value"], every["ci"], len(reporting))


def test_a_control_over_other_units_is_not_compared() -> None:
    table = planted(0.8, 0.6, [0.5, 0.7])
    assert "flow.random_weights" not in findings(
        table, random_weights=planted(None, None, [0.4], units=38)
    )


def test_too_few_clusters_are_said_to_be_too_few() -> None:
    for units, interval in ((2, False), (6, True)):  # 1 and 3 clusters
        found = findings(planted(0.8, 0.5, [0.5, 0.7, 0.6], units=units))
        assert "too few clusters to split" in found["flow.peak"]["text"]
        assert all(f["n"] == units and (f["ci"] is not None) == interval for f in found.values())
        assert ("no interval" in found["flow.projector"]["text"]) is not interval
        assert "too few clusters to tell" in found["flow.projector"]["text"]
        assert found["flow.projector"]["clear"] is False  # however large the drop
        assert "holds 0" not in found["flow.projector"]["text"]
    found = findings(planted(0.8, 0.5, [0.5, 0.7, 0.6], units=8))  # 4 clusters: two halves of 2
    assert "chosen on the other half" in found["flow.peak"]["text"]
    assert all(f["ci"] is not None for f in found.values())


def test_stages_that_were_not_read_have_no_finding() -> None:
    assert list(findings(planted(None, None, [0.5, 0.7]))) == ["flow.peak", "flow.late_loss"][:1]
    assert findings(Table(rows({("vision", None): np.full(4, 0.5)}))) == {}


def test_single_heads_are_no_layers() -> None:
    scores = rows({("value", layer): np.full(8, 0.5) for layer in range(2)})
    heads = [replace(r, head=0, score=0.9) for r in scores]
    found = findings(Table([*heads, *scores]))
    assert (
        found["flow.peak"]["value"] == pytest.approx(0.5) and "of 2" in found["flow.peak"]["text"]
    )


def test_the_dataset_is_named_unless_it_is_the_default() -> None:
    assert findings(FLAT)["flow.peak"]["text"].startswith("Semantic correspondence: ")
    named = findings(FLAT, dataset="spair71k")["flow.peak"]
    assert named["text"].startswith("Semantic correspondence (spair71k): ")
    assert named["dataset"] == "spair71k"


def test_findings_are_plain_json_with_every_number_in_the_sentence() -> None:
    for finding in findings(LOSES_AT_PROJECTOR).values():
        assert json.loads(json.dumps(finding, allow_nan=False)) == finding
        for number in numbers(finding):
            assert f"{abs(number):.3f}" in finding["text"]
        assert f"(n = {finding['n']})" in finding["text"]


def test_overlays_show_the_best_value_layer() -> None:
    curve = Curve("semantic_correspondence", "scenes", "PCK@0.1", LOSES_AT_PROJECTOR)
    assert best_site(curve) == Site("value", 1)
    nothing = Table(rows({("vision", None): np.full(4, 0.5)}))
    assert best_site(Curve("t", "scenes", "m", nothing)) is None


def test_six_clusters_are_enough_to_tell_and_five_are_not() -> None:
    for units, clear in ((10, False), (12, True)):  # two units a cluster
        found = findings(planted(0.8, 0.5, [0.5, 0.7, 0.6], units=units))["flow.projector"]
        assert found["clear"] is clear and (found["ci"][1] < 0)
