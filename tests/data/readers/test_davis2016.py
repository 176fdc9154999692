"""DAVIS-2016: one object in masks of 0 and 255, read, probed and scored; masks of each object."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees
from commands import Ended, call
from PIL import Image

from kvfix.data.catalog import check, load_units
from kvfix.data.readers.davis2016 import read_result
from kvfix.data.units import BadUnit, Clip
from kvfix.eval.metrics import davis_objects

CLIPS = ("goat", "ants")


def grey(path: Path, values_HW: np.ndarray) -> Path:
    """A mode-L PNG, as DAVIS-2016 has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values_HW.astype(np.uint8)).save(path)
    return path


def one_object(t: int) -> np.ndarray:
    """Both blocks of `trees.labels` as one object of 255."""
    return (trees.labels(t) > 0).astype(np.uint8) * 255


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """A DAVIS-2016 folder as its own archive lays it out."""
    root = trees.davis(tmp_path / "DAVIS", clips=CLIPS)
    for file in (root / "Annotations/480p").rglob("*.png"):
        grey(file, one_object(int(file.stem)))
    shutil.rmtree(root / "ImageSets")
    lines = [
        f"/JPEGImages/480p/{name}/{t:05d}.jpg /Annotations/480p/{name}/{t:05d}.png \n"
        for name in CLIPS
        for t in range(5)
    ]
    path = root / "ImageSets/480p/val.txt"
    path.parent.mkdir(parents=True)
    path.write_text("".join(lines))
    return root


@pytest.fixture
def archive_2017(tmp_path: Path) -> Path:
    """A DAVIS-2017 folder, which lists the sequences of 2016 too; here they are half of all."""
    root = trees.davis(tmp_path / "DAVIS17", clips=CLIPS)
    (root / "ImageSets/2016").mkdir()
    (root / "ImageSets/2016/val.txt").write_text("ants\n")
    return root


def clip_of(root: Path, index: int = 0) -> Clip:
    [units] = load_units([f"davis2016={root}"])
    found = units.load(index)
    assert isinstance(found, Clip)
    return found


def test_the_object_of_its_own_archive_is_255(davis: Path) -> None:
    [units] = load_units([f"davis2016={davis}"])
    assert (units.dataset, units.ids, units.cluster) == ("davis2016", CLIPS, "sequence")
    clip = clip_of(davis)
    assert len(clip.frames) == len(clip.masks) == 5
    for t, mask_HW in enumerate(clip.masks):
        assert (mask_HW == (trees.labels(t) > 0)).all() and mask_HW.dtype == np.uint8
    assert check(f"davis2016={davis}") == []


def test_objects_of_the_2017_archive_are_one_and_its_void_is_none(archive_2017: Path) -> None:
    for t in range(5):
        labels = trees.labels(t)
        labels[-2:] = 255
        trees.mask(archive_2017 / f"Annotations/480p/ants/{t:05d}.png", labels)
    [units] = load_units([f"davis2016={archive_2017}"])
    assert units.ids == ("ants",)
    for t, mask_HW in enumerate(clip_of(archive_2017).masks):
        assert (mask_HW == (trees.labels(t) > 0)).all()


def test_each_edition_names_the_other(davis: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lists of DAVIS-2016.*davis2016=DIR"):
        load_units([f"davis2017={davis}"])
    shutil.rmtree(davis / "ImageSets")
    with pytest.raises(FileNotFoundError, match=r"480p/val.txt or ImageSets/2016/val.txt, found"):
        load_units([f"davis2016={davis}"])


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "expected a frame a line, found an empty list"),
        ("goat\n", r"val\.txt:1: expected a frame such as .*found 'goat'"),
        ("/JPEGImages/480p/../00000.jpg x\n", r"val\.txt:1: expected a frame"),
    ],
)
def test_a_list_of_another_form_is_refused(davis: Path, lines: str, says: str) -> None:
    (davis / "ImageSets/480p/val.txt").write_text(lines)
    with pytest.raises(ValueError, match=says):
        load_units([f"davis2016={davis}"])
    assert check(f"davis2016={davis}")


def test_a_bad_mask_is_found_by_check_and_costs_its_clip(davis: Path) -> None:
    grey(davis / "Annotations/480p/goat/00000.png", np.zeros((24, 32)))
    with pytest.raises(BadUnit, match=r"goat/00000.png: expected at least one object"):
        clip_of(davis)
    assert len(check(f"davis2016={davis}")) == 1
    assert len(clip_of(davis, 1).masks) == 5


def score(pred: Path, gt: Path, *more: str, name: str = "davis") -> Ended:
    return call("score", name, "--pred", pred, "--gt", gt, "--json", *more)


def results(folder: Path, make: Callable[[int], np.ndarray]) -> Path:
    """Results of the frames that count: those of the frame before."""
    for name in CLIPS:
        for t in range(1, 4):
            grey(folder / name / f"{t:05d}.png", make(t - 1))
    return folder


def expected() -> tuple[float, ...]:
    true = [(trees.labels(t) > 0).astype(np.uint8) for t in range(5)]
    mine = [(trees.labels(max(t - 1, 0)) > 0).astype(np.uint8) for t in range(5)]
    [one] = davis_objects(mine, true)
    return one


def test_the_figures_are_those_of_one_object_a_sequence(davis: Path, tmp_path: Path) -> None:
    done = score(results(tmp_path / "pred", one_object), davis)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["benchmark"], found["n_objects"]) == ("davis2016", 2)
    one = expected()
    # Blocks 6 x 8, a column off: two of 42 in two of 54.
    assert found["J-Mean"] == pytest.approx(42 / 54, abs=1e-12) and found["J-Recall"] == 1
    for at, name in enumerate(("J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")):
        assert found[name] == pytest.approx(one[at], abs=1e-12)
    assert found["results"][0]["dataset"] == "davis2016" and "DAVIS-2016" in done.err
    named = json.loads(score(tmp_path / "pred", davis, name="davis2016").out)
    assert named["J&F-Mean"] == found["J&F-Mean"]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda t: one_object(t) // 255, id="0 and 1"),
        pytest.param(lambda t: np.where(one_object(t) > 0, 200, 90), id="soft"),
    ],
)
def test_results_of_other_values_follow_the_official_rule(
    davis: Path, tmp_path: Path, make: Callable[[int], np.ndarray]
) -> None:
    found = json.loads(score(results(tmp_path / "pred", make), davis).out)
    assert found["J-Mean"] == pytest.approx(42 / 54, abs=1e-12)


def test_one_bit_masks_are_read_and_labels_of_several_objects_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(one_object(0) > 0).save(path)
    assert (read_result(path) == (one_object(0) > 0)).all()
    trees.mask(path, trees.labels(0))
    with pytest.raises(BadUnit, match=r"expected one object, .*found labels 0, 1, 2"):
        read_result(path)
    assert not read_result(grey(path, np.zeros((24, 32)))).any()


def test_a_plain_folder_of_0_and_255_is_a_truth_of_2016(davis: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(davis / "Annotations/480p", tmp_path / "plain")
    found = json.loads(score(results(tmp_path / "pred", one_object), plain).out)
    assert found["benchmark"] == "davis2016"


def test_the_year_can_be_asked_for(archive_2017: Path, tmp_path: Path) -> None:
    pred = results(tmp_path / "pred", one_object)
    assert json.loads(score(pred, archive_2017, "--year", "2016").out)["n_objects"] == 1
    done = score(pred, archive_2017)
    assert "expected object ids up to 2" in done.error and "--year 2016" in done.error


def per_object(folder: Path, top: int = 255) -> Path:
    """Results of the frames that count as SAM 2 writes them for each object."""
    for name in CLIPS:
        for k in (1, 2):
            for t in range(1, 4):
                block = (trees.labels(t - 1) == k) * top
                grey(folder / name / f"{k:03d}" / f"{t:05d}.png", block)
    return folder


@pytest.mark.parametrize("top", [1, 255])
def test_a_folder_for_each_object_is_scored_like_label_maps(tmp_path: Path, top: int) -> None:
    truth = trees.davis(tmp_path / "DAVIS", clips=CLIPS)
    flat = results(tmp_path / "flat", trees.labels)
    apart = per_object(tmp_path / "apart", top)
    one, two = (json.loads(score(pred, truth).out) for pred in (flat, apart))
    assert one["J&F-Mean"] == two["J&F-Mean"] and one["sequences"] == two["sequences"]
    shutil.rmtree(apart / "ants/002")  # an object without masks scores as an empty one
    less = json.loads(score(apart, truth).out)["sequences"]["ants"]["objects"]
    assert less["ants_2"]["J-Mean"] == 0 and less["ants_1"] == one["sequences"]["ants"]["objects"][
        "ants_1"
    ]  # fmt: skip


def test_where_objects_overlap_the_lower_label_has_the_pixels(tmp_path: Path) -> None:
    truth = trees.davis(tmp_path / "DAVIS", clips=CLIPS)
    apart = per_object(tmp_path / "apart")
    before = json.loads(score(apart, truth).out)
    for t in range(1, 4):
        whole = (trees.labels(t - 1) > 0) * 255
        grey(apart / f"ants/002/{t:05d}.png", whole)
    assert json.loads(score(apart, truth).out)["sequences"] == before["sequences"]


def test_faults_of_object_folders_are_named(tmp_path: Path) -> None:
    truth = trees.davis(tmp_path / "DAVIS", clips=CLIPS)
    apart = per_object(tmp_path / "apart")
    third = apart / "ants/003"
    shutil.copytree(apart / "ants/002", third)
    assert "expected object ids up to 2" not in score(apart, truth).err  # it has no pixel left
    for t in range(1, 4):
        grey(third / f"{t:05d}.png", np.full((24, 32), 255))
    assert "expected object ids up to 2" in score(apart, truth).error
    third.rename(apart / "ants/other")
    assert "ants/other: expected masks <sequence>/<frame>.png, or <sequence>/<object>" in (
        score(apart, truth).error
    )
    shutil.rmtree(apart / "ants/other")
    (apart / "ants/002/00002.png").unlink()
    assert "ants/002: expected a mask for each of 3 frames, found none for 00002.png" in (
        score(apart, truth).error
    )
    grey(apart / "ants/002/00002.png", np.full((24, 32), 7))
    assert "expected the mask of one object, 0 and 1 or 0 and 255, found 7" in (
        score(apart, truth).error
    )
    for below in (apart / "ants").iterdir():
        shutil.rmtree(below)
    assert "ants: expected masks <frame>.png or <object>/<frame>.png" in score(apart, truth).error


def test_label_propagation_runs_on_it(
    checkpoint: Callable[[str], Path], davis: Path, tmp_path: Path
) -> None:
    done = call(
        *("eval", "--model", checkpoint("llava_onevision"), "--data", f"davis2016={davis}"),
        *("--task", "temporal_correspondence", "--site", "value", "--out", tmp_path / "run"),
    )
    assert done.code == 0, done.err
    run = json.loads((tmp_path / "run/run.json").read_text())
    rows = [r for r in run["results"] if r["dataset"] == "davis2016"]
    assert rows and all(0 <= r["value"] <= 1 and r["n"] == 2 for r in rows if r["metric"] == "J&F")
