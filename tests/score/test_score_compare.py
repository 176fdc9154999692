"""What `kvfix score --out` writes is what `kvfix compare` takes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
from commands import Ended, call
from scored import figures, jsonl, pngs, rle, rows, score

from kvfix.data.readers import episodes, pascal
from kvfix.data.readers.imagenet_names import NAMES
from kvfix.data.readers.pascal import pascal_truths
from kvfix.data.readers.refcoco import refcoco_sentences
from kvfix.data.units import Sentence


def compare(folder: Path, *more: object) -> Ended:
    """BEFORE and AFTER lie in one folder."""
    out = folder / "compared"
    return call("compare", folder / "before", folder / "after", "--out", out, "--json", *more)


def headlines(folder: Path) -> dict[str, dict[str, Any]]:
    """Headline rows by metric; all are of the predictions."""
    done = compare(folder)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert {row["place"] for row in record["probes"]} == {"predictions"}
    assert (folder / "compared/compare.html").stat().st_size > 0
    return {row["metric"]: row for row in record["probes"]}


def test_spair(tmp_path: Path) -> None:
    root = trees.spair(tmp_path / "SPair-71k", {"cat": ["a", "b"], "dog": ["a", "d"]})
    found = {}
    for side, far in (("before", 3), ("after", 1)):
        lines = []
        for path in sorted((root / "PairAnnotation/test").glob("*.json")):
            points = np.array(json.loads(path.read_text())["trg_kps"], float)
            points[0, 0] += far  # the radius is 2.2 pixels
            lines.append({"pair": path.stem, "xy": points.tolist()})
        pred = jsonl(tmp_path / f"{side}.jsonl", lines)
        found[side] = figures("spair", pred, root, "--out", tmp_path / side)
    rows_of = headlines(tmp_path)
    for metric, name in (("PCK@0.1", "per image"), ("PCK per point", "per point")):
        before, after = (found[s]["figures"][f"PCK@0.1 bbox, {name}"] for s in found)
        assert (rows_of[metric]["before"], rows_of[metric]["after"]) == (before, after) == (0.5, 1)
        assert rows_of[metric]["value"] == 0.5 and rows_of[metric]["n"] == 4


def test_refcoco_and_its_rules(tmp_path: Path) -> None:
    box = [4.0, 2.0, 20.0, 2.0, 20.0, 12.0, 4.0, 12.0]
    photos = [trees.refcoco_row(f"{k}.jpg", box, ["x", "y"], 10) for k in range(3)]
    trees.parquet(tmp_path / "RefCOCO/testA-00000-of-00001.parquet", photos)
    units = refcoco_sentences(tmp_path / "RefCOCO")
    found = {}
    for side, moved in (("before", 4), ("after", 1)):
        lines = []
        for i, name in enumerate(units.ids):
            unit = units.load(i)
            assert isinstance(unit, Sentence)
            lines.append({"id": name, "rle": rle(np.roll(unit.mask, moved + i, axis=1))})
        pred = jsonl(tmp_path / f"{side}.jsonl", lines)
        found[side] = figures("refcoco", pred, tmp_path / "RefCOCO", "--out", tmp_path / side)
    rows_of = headlines(tmp_path)
    for metric, name in (("IoU", "mIoU"), ("pooled IoU", "cIoU")):
        row = rows_of[metric]
        assert row["before"] == pytest.approx(found["before"]["figures"][name], abs=1e-15)
        assert row["after"] == pytest.approx(found["after"]["figures"][name], abs=1e-15)
        assert row["ci"][0] <= row["value"] <= row["ci"][1] and row["clusters"] == 3
    other = tmp_path / "other"
    figures("refcoco", pred, tmp_path / "RefCOCO", "--profile", "lavt", "--out", other / "after")
    (tmp_path / "before").rename(other / "before")
    done = compare(other)
    assert done.code == 1 and "profile: expected the same before and after" in done.error


def test_pascal_differs_by_class_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pascal, "draw_episodes", partial(episodes.draw_episodes, episodes=3))
    shown = {"a": (1,), "b": (2, 1), "c": (2, 15), "d": (15,), "e": (15, 6), "f": (6,)}
    root = trees.pascal(tmp_path / "VOC2012", shown)
    truths = pascal_truths(root)
    found = {}
    for side, moved in (("before", 90), ("after", 30)):
        masks = {
            name: np.roll(truths.load(i).mask == 1, moved + 9 * i, axis=1)
            for i, name in enumerate(truths.units.ids)
        }
        pred = pngs(tmp_path / f"{side}-masks", masks)
        found[side] = figures("pascal5i", pred, root, "--out", tmp_path / side)
    row = headlines(tmp_path)["mIoU"]
    # Official means count the classes without episodes as 0: four of fifteen have some here.
    for side in found:
        assert row[side] * 4 / 15 == pytest.approx(found[side]["value"], abs=1e-15)
    assert row["value"] == pytest.approx(row["after"] - row["before"], abs=1e-12) and row["ci"]


def test_msrc(tmp_path: Path) -> None:
    root = trees.msrc(tmp_path / "MSRC", {"cow": 2, "bird": 2})
    for side, top in (("before", 12), ("after", 5)):
        masks = {}
        for group in ("cow", "bird"):
            for k in range(2):
                mask = np.zeros((trees.HEIGHT, trees.WIDTH), bool)
                mask[top:20, k : k + 10] = True
                masks[f"{group}/5_{k}_s"] = mask
        figures("msrc", pngs(tmp_path / f"{side}-masks", masks), root, "--out", tmp_path / side)
    row = headlines(tmp_path)["J"]
    assert (row["before"], row["after"], row["n"]) == (8 / 15, 1.0, 2)


def test_imagenet_s(tmp_path: Path) -> None:
    fifty = sorted(NAMES)[::20]
    root = trees.imagenet_s(tmp_path / "ImageNetS50", dict.fromkeys(fifty, 1))
    for side, width in (("before", 5), ("after", 10)):
        labels = np.zeros((trees.HEIGHT, trees.WIDTH), np.int64)
        for k, wordnet_id in enumerate(fifty, start=1):
            labels[5:15, 5 : 5 + width] = k
            name = f"{wordnet_id}/ILSVRC2012_val_00000000.png"
            trees.class_map(tmp_path / f"{side}-maps" / name, labels)
        pred = tmp_path / f"{side}-maps"
        found = figures("imagenet_s", pred, root, "--out", tmp_path / side)
    assert found["value"] == 1.0 and found["absent"] == [] and found["notes"] == []
    row = headlines(tmp_path)["IoU"]
    assert (row["before"], row["after"], row["n"]) == (0.5, 1.0, 50)


def test_davis_objects_are_units_of_a_sequence(tmp_path: Path) -> None:
    truth = trees.davis(tmp_path / "DAVIS")
    found = {}
    for side, lag in (("before", 2), ("after", 1)):
        for name in ("goat", "ants"):
            for t in range(1, 4):
                path = tmp_path / f"{side}-masks" / name / f"{t:05d}.png"
                trees.mask(path, trees.labels(max(t - lag, 0)))
        pred = tmp_path / f"{side}-masks"
        found[side] = figures("davis", pred, truth, "--out", tmp_path / side)
    row = headlines(tmp_path)["J&F"]
    assert row["before"] == pytest.approx(found["before"]["J&F-Mean"], abs=1e-15)
    assert row["after"] == pytest.approx(found["after"]["J&F-Mean"], abs=1e-15)
    assert (row["n"], row["clusters"]) == (4, 2) and row["value"] > 0
    first = rows(tmp_path / "after")[0]
    assert (first["id"], first["cluster"], first["task"]) == (
        "goat_1",
        "goat",
        "temporal_correspondence",
    )
    run = json.loads((tmp_path / "after/run.json").read_text())
    assert run["kind"] == "score" and run["complete"]
    assert run["J&F-Mean"] == found["after"]["J&F-Mean"]
    assert run["data"] == found["before"]["data"] and run["predictions"]["n"] == 2
    assert run["predictions"]["sha256"] != found["before"]["predictions"]["sha256"]


def test_other_truths_are_not_compared(tmp_path: Path) -> None:
    truth = trees.davis(tmp_path / "DAVIS")
    pred = tmp_path / "masks"
    for name in ("goat", "ants"):
        for t in range(1, 4):
            trees.mask(pred / name / f"{t:05d}.png", trees.labels(t))
    figures("davis", pred, truth, "--out", tmp_path / "before")
    trees.mask(truth / "Annotations/480p/goat/00002.png", trees.labels(1))
    figures("davis", pred, truth, "--out", tmp_path / "after")
    done = compare(tmp_path)
    assert done.code == 1 and "expected the same data before and after" in done.error


def test_a_scored_folder_is_written_again_or_refused(tmp_path: Path) -> None:
    root = trees.msrc(tmp_path / "MSRC", {"cow": 2})
    mask = np.ones((trees.HEIGHT, trees.WIDTH), bool)
    pred = pngs(tmp_path / "pred", {f"cow/5_{k}_s": mask for k in range(2)})
    out = tmp_path / "out"
    figures("msrc", pred, root, "--out", out)
    before = (out / "samples/cosegmentation.jsonl").read_bytes()
    (out / "samples/cosegmentation.jsonl").write_text("torn")
    figures("msrc", pred, root, "--out", out)
    assert (out / "samples/cosegmentation.jsonl").read_bytes() == before
    pngs(pred, {"cow/5_0_s": ~mask})
    done = score("msrc", pred, root, "--out", out)
    assert (
        done.code == 1 and "holds another run" in done.error and "predictions: then" in done.error
    )
