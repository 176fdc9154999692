"""Rows -> tables -> results: every number with its n and its interval."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from curves import rows

from kvfix.data.scenes.units import scene_units
from kvfix.eval.results import Table, summarise
from kvfix.eval.site import Site
from kvfix.eval.stats.bootstrap import clustered_bootstrap
from kvfix.eval.suite import TaskRun

SCORES = {
    ("value", 1): np.array([0.1, 0.2, 0.3, 0.4]),
    ("vision", None): np.array([0.9, 0.8, 0.7, 0.6]),
    ("value", 0): np.array([0.5, 0.5, 0.5, 0.9]),
}


def run_of(found: list, n: int = 4) -> TaskRun:
    return TaskRun(scene_units("semantic_correspondence", n=n), found, [])


def test_a_table_has_a_row_a_unit_and_a_column_a_site() -> None:
    table = Table(rows(SCORES))
    assert table.ids == ["u0", "u1", "u2", "u3"] and table.clusters == ["c0", "c0", "c1", "c1"]
    assert table.sites == [Site("value", 1), Site("vision"), Site("value", 0)]
    np.testing.assert_array_equal(table.score_NS, np.stack(list(SCORES.values()), axis=1))
    assert (table.chance_NS == 0.1).all() and (table.ceiling_NS == 0.9).all()


def test_columns_come_in_layer_order_and_heads_apart() -> None:
    found = rows({("value", layer): np.zeros(2) for layer in (10, 2, 1)})
    heads = [replace(row, head=h) for row in found for h in (1, 0)]
    table = Table([*heads, *found])
    assert [table.sites[i].layer for i in table.columns("value")] == [1, 2, 10]
    assert all(table.sites[i].head is None for i in table.columns("value"))
    apart = [table.sites[i][1:] for i in table.columns("value", head=True)]
    assert apart == [(1, 0), (1, 1), (2, 0), (2, 1), (10, 0), (10, 1)]
    assert table.columns("key") == []


def test_a_unit_without_a_sites_score_counts_where_it_has_one() -> None:
    found = [r for r in rows(SCORES) if (r.id, r.site) != ("u3", "vision")]
    table = Table(found)
    assert np.isnan(table.score_NS).sum() == 1
    by_site = {(r["site"], r["layer"]): r for r in summarise(run_of(found))}
    assert by_site["vision", None]["n"] == 3
    assert by_site["vision", None]["value"] == pytest.approx(0.8)
    assert by_site["value", 0]["n"] == 4


def test_results_are_means_with_clustered_intervals() -> None:
    results = summarise(run_of(rows(SCORES)), control="random_weights", seed=3)
    assert [(r["site"], r["layer"]) for r in results] == list(SCORES)
    for r, score_N in zip(results, SCORES.values(), strict=True):
        wanted = clustered_bootstrap(score_N, ["a", "a", "b", "b"], seed=3)
        assert r["value"] == pytest.approx(score_N.mean())
        assert r["ci"] == pytest.approx([wanted.low_S[0], wanted.high_S[0]])
        assert r["ci"][0] <= r["value"] <= r["ci"][1]
        assert (r["n"], r["clusters"], r["cluster"]) == (4, 2, "unit")
        assert (r["chance"], r["ceiling"]) == pytest.approx((0.1, 0.9))
        assert (r["task"], r["dataset"], r["split"]) == (
            "semantic_correspondence",
            "scenes",
            "test",
        )
        assert (r["metric"], r["head"], r["control"]) == ("PCK@0.1", None, "random_weights")
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_one_cluster_has_no_interval() -> None:
    [result] = summarise(run_of(rows({("value", 0): np.array([0.2, 0.4])}, a_cluster=2), n=2))
    assert result["value"] == pytest.approx(0.3) and result["ci"] is None
    assert (result["n"], result["clusters"]) == (2, 1)


def test_nothing_scored_gives_no_results() -> None:
    assert summarise(run_of([])) == []
