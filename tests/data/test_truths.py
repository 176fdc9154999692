"""Truths without photos are those of the units that probes score, in the same order."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trees

from kvfix.data.catalog import load_units
from kvfix.data.readers import episodes, pascal
from kvfix.data.readers.episodes import CLASSES
from kvfix.data.readers.imagenet_names import NAMES
from kvfix.data.readers.imagenet_s import imagenet_s_truths
from kvfix.data.readers.msrc import msrc_truths
from kvfix.data.readers.pascal import pascal_truths
from kvfix.data.readers.spair import spair_truths
from kvfix.data.units import Episode, Group, Pair, Sentence, Truths, UnitSet


def both(spec: str, truths: Truths) -> UnitSet:
    """The set that probes read; the truths must be of the same units."""
    [units] = load_units([spec])
    assert units.ids == truths.units.ids and units.cluster == truths.units.cluster
    assert (units.task, units.dataset, units.split) == (
        truths.units.task,
        truths.units.dataset,
        truths.units.split,
    )
    return units


def test_spair(tmp_path: Path) -> None:
    root = trees.spair(tmp_path / "SPair-71k", {"cat": ["a", "b", "c"], "dog": ["a", "d"]})
    truths = spair_truths(root)
    units = both(f"spair71k={root}", truths)
    for i in range(len(units)):
        pair, truth = units.load(i), truths.load(i)
        assert isinstance(pair, Pair)
        assert (truth.id, truth.cluster, truth.category) == (pair.id, pair.cluster, pair.category)
        assert np.array_equal(truth.xy, pair.target_xy) and truth.box == pair.target_box
        assert truth.size == pair.target.size
    shutil.rmtree(root / "JPEGImages")
    assert np.array_equal(spair_truths(tmp_path).load(0).xy, truths.load(0).xy)


def test_pascal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pascal, "draw_episodes", partial(episodes.draw_episodes, episodes=2))
    shown = {"a-1": (1,), "b": (2, 1), "c": (2, 20), "d-x-20": (20,)}
    truths = pascal_truths(trees.pascal(tmp_path / "VOC2012", shown))
    units = both(f"pascal5i={tmp_path}", truths)
    for i in range(len(units)):
        episode, truth = units.load(i), truths.load(i)
        assert isinstance(episode, Episode)
        assert (truth.query, CLASSES[truth.label - 1]) == (episode.cluster, episode.category)
        assert np.array_equal(truth.mask, episode.query_mask)
        assert set(np.unique(truth.mask)) == {0, 1, 255}


def test_msrc(tmp_path: Path) -> None:
    truths = msrc_truths(trees.msrc(tmp_path / "MSRC", {"cow": 2, "bird": 12}))
    units = both(f"msrc={tmp_path}", truths)
    for i in range(len(units)):
        group, truth = units.load(i), truths.load(i)
        assert isinstance(group, Group) and list(truth) == sorted(truth)
        assert len(truth) == len(group.masks) == {"cow": 2, "bird": 12}[group.id]
        for mask, other in zip(truth.values(), group.masks, strict=True):
            assert np.array_equal(mask, other)


def test_imagenet_s(tmp_path: Path) -> None:
    fifty = sorted(NAMES)[::20]
    truths = imagenet_s_truths(trees.imagenet_s(tmp_path / "ImageNetS50", dict.fromkeys(fifty, 1)))
    units = both(f"imagenet_s={tmp_path}", truths)
    assert list(truths.classes) == fifty
    for i in range(len(units)):
        sentence, ids_HW = units.load(i), truths.load(i)
        assert isinstance(sentence, Sentence)
        own = truths.classes.index(sentence.category) + 1
        expected = np.where(ids_HW == 1000, 255, ids_HW == own)
        assert np.array_equal(expected, sentence.mask) and (ids_HW == own).any()
