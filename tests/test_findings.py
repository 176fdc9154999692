"""A finding: numbers and words apart, one sentence, one rule of what is clear."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kvfix.eval.stats.bootstrap import clustered_bootstrap
from kvfix.findings import PLACES, Estimate, Finding, interval, number, title

GAIN = Estimate(0.25, (0.125, 0.375), 12, clusters=6)
FOUND = Finding(
    *("flow.lm_gain", "The LM adds 0.250.", GAIN, "cosegmentation", "msrc"),
    subject="Cosegmentation (msrc)",
    clear=True,
    more={"layer": 3},
)


@pytest.mark.parametrize(
    ("ci", "clusters", "clear", "doubt"),
    [
        ((0.125, 0.375), 6, True, ""),
        ((-0.375, -0.125), 6, True, ""),
        ((-0.125, 0.375), 6, False, " (the interval holds 0: no clear difference)"),
        ((0.125, 0.375), 5, False, " (too few clusters to tell)"),
        (None, 6, False, " (the interval holds 0: no clear difference)"),
    ],
)
def test_a_difference_is_clear_off_zero_and_from_six_clusters_on(
    ci: tuple[float, float] | None, clusters: int, clear: bool, doubt: str
) -> None:
    got = Estimate(0.25, ci, 12, clusters)
    assert got.clear is clear and got.doubt() == doubt


def test_numbers_are_said_with_interval_and_n() -> None:
    assert GAIN.said() == "0.250 [0.125, 0.375] (n = 12)"
    assert GAIN.said(signed=True, n=False) == "+0.250 [+0.125, +0.375]"
    assert Estimate(0.25, None, 1).said() == "0.250 [no interval] (n = 1)"


def test_an_estimate_is_one_number_of_an_interval() -> None:
    scores_NS = np.array([[0.0, 1.0], [1.0, 1.0], [0.5, np.nan]])
    got = clustered_bootstrap(scores_NS, ["a", "b", "b"], seed=0)
    second = Estimate.of(got, 1)
    assert (second.value, second.ci, second.n, second.clusters) == (1.0, (1.0, 1.0), 2, 2)
    alone = Estimate.of(clustered_bootstrap(scores_NS[:1, :1], ["a"], seed=0))
    assert alone.ci is None and alone.n == 1


def test_a_finding_comes_back_from_run_json() -> None:
    written = json.loads(json.dumps(FOUND.to_json()))
    assert written["text"] == "Cosegmentation (msrc): The LM adds 0.250." and written["layer"] == 3
    again = Finding.from_json(written)
    assert again.to_json() == written and again.words == FOUND.words


def test_numbers_stand_beside_words_that_round_them() -> None:
    assert FOUND.numbers == ""
    rounded = Finding("x", "In 25 %.", GAIN, "mcq", "scenes", percent=True)
    assert rounded.numbers == "0.250 [0.125, 0.375], n = 12" and rounded.text == "In 25 %."


def test_a_run_json_of_anybody_is_read() -> None:
    odd = Finding.from_json({"text": 3, "value": "high", "ci": [0, float("nan")], "clear": "yes"})
    assert odd.text == "3" and odd.estimate == Estimate(None, None, 0) and odd.clear is None
    assert number(True) is None and number(float("inf")) is None and number(2) == 2.0
    assert interval([1, 2]) == (1.0, 2.0) and interval("no") == interval([1]) == (None, None)


def test_titles_name_every_dataset_but_scenes() -> None:
    assert title("semantic_correspondence", "spair71k") == "Semantic correspondence (spair71k)"
    assert title("readout_Art_Style", "scenes") == "Readout art style"
    assert PLACES["best"].where.format(layer=3) == "at value layer 3, the best of BEFORE"
