"""Pascal-5i: HSNet's episodes, the lists they are drawn from, and what a broken tree says."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image
from places import SHARED
from torch.nn import functional

from kvfix.data.catalog import check, load_units, notes
from kvfix.data.readers.episodes import CLASSES, Entry, draw_episodes
from kvfix.data.units import BadUnit, Episode, UnitSet

DATA = SHARED / "data"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return trees.pascal(tmp_path / "VOC2012", trees.PASCAL_SHOWN)


def _units(folder: Path) -> UnitSet:
    (units,) = load_units([f"pascal5i={folder}"])
    return units


def _episode(units: UnitSet, index: int = 0) -> Episode:
    unit = units.load(index)
    assert isinstance(unit, Episode)
    return unit


def _drawn_by_global_seed(entries: list[Entry], shots: int) -> list[tuple[str, list[str]]]:
    """The protocol in its own terms: the global legacy generator, a choice without replacement a
    draw, the query rejected.
    """
    np.random.seed(0)
    out = []
    for k in range(1000):
        query, label = entries[k % len(entries)]
        pool = [e.name for e in entries if e.label == label]
        support: list[str] = []
        while len(support) < shots:
            (name,) = np.random.choice(pool, 1, replace=False)
            if name != query:
                support.append(str(name))
        out.append((query, support))
    return out


@pytest.mark.parametrize("shots", [1, 5])
def test_draws_equal_those_of_the_global_generator(shots: int) -> None:
    entries = [Entry(f"p{i:03d}", 6 + i % 5) for i in range(451)]
    draws = draw_episodes(entries, 1, shots=shots)
    assert [(d.query, list(d.support)) for d in draws] == _drawn_by_global_seed(entries, shots)
    assert [d.query for d in draws[450:453]] == ["p450", "p000", "p001"]  # the list starts again
    assert draws[0].support != draws[451].support  # with other supports


def test_fewer_photos_than_shots_repeat_but_never_the_query() -> None:
    draws = draw_episodes([Entry("a", 3), Entry("b", 3), Entry("c", 3)], 0)
    assert len(draws) == 1000
    for d in draws:
        assert len(d.support) == 5 and d.query not in d.support
    assert {n for d in draws for n in d.support if d.query == "a"} == {"b", "c"}
    assert draw_episodes([], 0) == []


def test_folds_take_turns_and_each_starts_the_generator_anew(voc: Path) -> None:
    units = _units(voc)
    assert (units.task, units.split, units.cluster) == (
        "foreground_segmentation",
        "val",
        "query image",
    )
    assert len(units) == len(set(units.ids)) == 4000
    assert [i[:5] for i in units.ids[:8]] == 2 * ["fold0", "fold1", "fold2", "fold3"]
    assert units.ids[0] == "fold0-0000-a-aeroplane" and units.ids[4] == "fold0-0001-b-aeroplane"
    assert units.ids[8] == "fold0-0002-b-bicycle"  # by photo, then by class
    entries = [Entry("c", 15), Entry("d", 15), Entry("e", 15)]
    expected = _drawn_by_global_seed(entries, 5)
    shades = {name: 10 * k for k, name in enumerate(trees.PASCAL_SHOWN)}
    for k in (0, 1, 999):
        episode = _episode(units, 4 * k + 2)
        assert (episode.cluster, episode.category) == (expected[k][0], "person")
        for image, name in zip(episode.support, expected[k][1], strict=True):
            assert abs(np.asarray(image).mean() - 20 - shades[name]) < 2


def test_an_episode_is_400_pixels_with_void_kept_and_other_classes_ground(voc: Path) -> None:
    units = _units(voc)
    episode = _episode(units, units.ids.index("fold0-0002-b-bicycle"))
    assert episode.query.size == (400, 400) and len(episode.support) == 5
    assert {m.shape for m in (episode.query_mask, *episode.support_masks)} == {(400, 400)}
    labels = torch.tensor(trees.pascal_labels((2, 1)))[None, None].float()
    resized = functional.interpolate(labels, (400, 400), mode="nearest")[0, 0].numpy()
    assert (episode.query_mask == np.where(resized == 255, 255, resized == 2)).all()
    assert set(np.unique(episode.query_mask)) == {0, 1, 255}
    assert episode.query_mask.dtype == np.uint8
    photo = Image.open(voc / "JPEGImages/b.jpg").resize((400, 400), Image.Resampling.BILINEAR)
    assert (np.asarray(episode.query) == np.asarray(photo)).all()


@pytest.mark.parametrize("n", [1, 281, 333, 366, 375, 399, 400, 500, 613])
def test_masks_are_sampled_as_torch_does(tmp_path: Path, n: int) -> None:
    from kvfix.data.readers.pascal import _nearest

    line = torch.arange(n, dtype=torch.float32)[None, None]
    expected = functional.interpolate(line, 400, mode="nearest")[0, 0].numpy()
    assert (_nearest(n) == expected).all()


def test_small_objects_make_no_entry(tmp_path: Path) -> None:
    root = trees.pascal(tmp_path / "VOC2012", {"a": (1,), "b": (1,), "c": (1,)})
    labels = trees.pascal_labels(())
    labels[:32, :64] = 1  # 2,048 pixels: just enough
    trees.mask(root / "SegmentationClassAug/b.png", labels)
    assert {i.split("-")[2] for i in _units(root).ids} == {"a", "b", "c"}
    labels[0, 0] = 0
    trees.mask(root / "SegmentationClassAug/b.png", labels)
    assert {i.split("-")[2] for i in _units(root).ids} == {"a", "c"}


def test_a_class_with_one_photo_is_left_out_and_said(tmp_path: Path) -> None:
    root = trees.pascal(tmp_path / "VOC2012", {"a": (1, 7), "b": (1, 3), "c": (9,), "d": (9,)})
    units = _units(root)
    assert Counter(i.split("-")[3] for i in units.ids) == {"aeroplane": 1000, "chair": 1000}
    assert check(f"pascal5i={root}") == []
    said = "\n".join(notes(f"pascal5i={root}"))
    assert "fold 0: bird is left out, because b is its only photo" in said
    assert "fold 1: car is left out" in said and "fold 2: 0 entries" in said
    assert "346, 451, 725, 346" in said
    alone = trees.pascal(tmp_path / "alone", {"a": (1,), "b": (2,)})
    with pytest.raises(ValueError, match="expected a class with at least 2 photos"):
        _units(alone)


def _write_lists(root: Path) -> None:
    folder = root / "splits/pascal/val"
    folder.mkdir(parents=True)
    for fold, lines in enumerate(("b__02\nc__02", "f__06\ne__06", "c__15\nd__15", "f__20\ng__20")):
        (folder / f"fold{fold}.txt").write_text(lines + "\n")


def test_the_official_lists_are_used_where_they_lie(voc: Path) -> None:
    before = _units(voc)
    _write_lists(voc)
    units = _units(voc)
    assert units.sha256 != before.sha256
    assert units.ids[:4] == (
        "fold0-0000-b-bicycle",
        "fold1-0000-f-bus",  # in the order of the file
        "fold2-0000-c-person",
        "fold3-0000-f-tvmonitor",
    )
    assert check(f"pascal5i={voc}") == [] and "HSNet's lists" in notes(f"pascal5i={voc}")[0]
    trees.mask(voc / "SegmentationClassAug/b.png", trees.pascal_labels((1,)))
    (problem,) = check(f"pascal5i={voc}")
    assert "b.png: expected class 2 (bicycle), which" not in problem
    assert "b.png: expected class 2 (bicycle), found no pixel of it" in problem
    with pytest.raises(BadUnit, match="expected class 2"):
        _units(voc).load(0)


@pytest.mark.parametrize("line", ["a__06", "a", "../a__01", "a__x", "a__00", "a__²"])
def test_broken_official_lists_are_refused(voc: Path, line: str) -> None:
    _write_lists(voc)
    (voc / "splits/pascal/val/fold0.txt").write_text(f"a__01\n{line}\n")
    with pytest.raises(ValueError, match=r"fold0\.txt: expected .* found"):
        _units(voc)
    (voc / "splits/pascal/val/fold0.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"fold0\.txt: expected the lists of all 4 folds"):
        _units(voc)


def _recolour(path: Path, value: int) -> None:
    labels = trees.pascal_labels((1,))
    labels[labels == 1] = value
    trees.mask(path, labels)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: (d / "SegmentationClassAug/b.png").unlink(), ["b.png", "no such file"]),
        (lambda d: (d / "SegmentationClassAug/b.png").write_bytes(b"x"), ["b.png", "1 bytes"]),
        (lambda d: _recolour(d / "SegmentationClassAug/b.png", 38), ["b.png", "20", "found 38"]),
        (lambda d: _recolour(d / "SegmentationClassAug/b.png", 255), ["b.png", "binary mask"]),
        (
            lambda d: Image.new("RGB", (100, 120)).save(d / "SegmentationClassAug/b.png"),
            ["b.png", "mode P", "RGB"],
        ),
        (lambda d: (d / "ImageSets/Segmentation/val.txt").write_text(""), ["empty list"]),
        (lambda d: shutil.rmtree(d / "SegmentationClassAug"), ["SegmentationClassAug"]),
    ],
)
def test_lists_are_not_made_from_a_broken_tree(
    voc: Path, harm: Callable[[Path], object], words: list[str]
) -> None:
    harm(voc)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        _units(voc)
    found = check(f"pascal5i={voc}")
    for message in (str(caught.value), found[0]):
        assert "expected" in message and "\n" not in message
        assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: (d / "JPEGImages/a.jpg").unlink(), ["a.jpg", "no such file"]),
        (lambda d: trees.photo(d / "JPEGImages/a.jpg", 5, (90, 120)), ["a.png", "90 x 120"]),
        (
            lambda d: (d / "JPEGImages/a.jpg").write_bytes(
                (d / "JPEGImages/a.jpg").read_bytes()[:-200]
            ),
            ["a.jpg", "truncated"],
        ),
    ],
)
def test_a_broken_photo_costs_its_episodes_only(
    voc: Path, harm: Callable[[Path], object], words: list[str]
) -> None:
    harm(voc)
    units = _units(voc)
    with pytest.raises(BadUnit) as caught:
        units.load(0)
    (problem,) = check(f"pascal5i={voc}")
    assert problem == str(caught.value) and all(word in problem for word in words)
    assert _episode(units, 1).category == "bus"


def test_no_photo_is_read_to_make_the_set(voc: Path) -> None:
    for path in voc.rglob("*.jpg"):
        path.write_bytes(b"not a photo")
    assert len(_units(voc.parent)) == 4000


def test_an_empty_tree_of_masks_is_not_complete(tmp_path: Path) -> None:
    root = trees.pascal(tmp_path / "VOC2012", {"a": (), "b": ()})
    assert "found none in any mask" in check(f"pascal5i={root}")[0]


@pytest.mark.shared
def test_real_photos() -> None:
    units = _units(DATA)
    assert len(units) == 4000 and check(f"pascal5i={DATA}") == []
    assert len(CLASSES) == 20
    for i in range(8):
        episode = _episode(units, i)
        masks = (episode.query_mask, *episode.support_masks)
        assert all(set(np.unique(m)) <= {0, 1, 255} and (m == 1).any() for m in masks)
        assert episode.cluster in episode.id and episode.category in episode.id
    folds = {int(i[4]): set() for i in units.ids}  # ids begin with fold0 to fold3
    for i in units.ids:
        folds[int(i[4])].add(i.split("-")[3])
    assert all(c in CLASSES[5 * f : 5 * f + 5] for f, names in folds.items() for c in names)
    # Three photos show dogs, two of them nothing else of the fold.
    assert folds[2] == {"diningtable", "dog", "motorbike", "person"}
