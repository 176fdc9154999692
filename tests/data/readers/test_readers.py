"""Readers of DAVIS-2017 and SPair-71k on small official trees, whole and broken."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from places import SHARED

from kvfix.data import files as files_module
from kvfix.data.catalog import CATALOG, check, load_units
from kvfix.data.units import BadUnit, Clip, Pair, UnitSet

DATA = SHARED / "data"


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    return trees.davis(tmp_path / "DAVIS")


@pytest.fixture
def spair(tmp_path: Path) -> Path:
    return trees.spair(tmp_path / "SPair-71k", {"cat": ["a", "b", "c"], "dog": ["a", "d"]})


def _one(spec: str) -> UnitSet:
    (units,) = load_units([spec])
    return units


def _clip(units: UnitSet, index: int = 0) -> Clip:
    clip = units.load(index)
    assert isinstance(clip, Clip)
    return clip


def _pair(units: UnitSet, index: int = 0) -> Pair:
    pair = units.load(index)
    assert isinstance(pair, Pair)
    return pair


def _refuses(units: UnitSet, index: int, *words: str) -> None:
    with pytest.raises(BadUnit) as caught:
        unit = units.load(index)
        if isinstance(unit, Clip):
            list(unit.frames), list(unit.masks)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)
    for word in (*words, "found"):
        assert word in str(caught.value)


def test_davis_reads_frames_and_palette_labels_in_order(davis: Path) -> None:
    units = _one(f"davis2017={davis}")
    assert (units.task, units.split, units.cluster) == (
        "temporal_correspondence",
        "val",
        "sequence",
    )
    assert units.ids == ("goat", "ants")
    clip = _clip(units, 1)
    assert clip.id == clip.cluster == "ants" and len(clip.frames) == len(clip.masks) == 5
    for t, (frame, labels_HW) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        assert frame.mode == "RGB" and abs(np.asarray(frame).mean() - 20 - 10 * t) < 2
        assert labels_HW.dtype == np.uint8 and (labels_HW == trees.labels(t)).all()
    assert len(clip.masks[1:3]) == 2 and (clip.masks[-1] == trees.labels(4)).all()


def test_davis_opens_a_file_only_when_it_is_asked_for(
    davis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = files_module.read_photo

    def spy(path: Path) -> Image.Image:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr("kvfix.data.readers.davis.read_photo", spy)
    clip = _clip(_one(f"davis2017={davis}"))
    assert opened == []
    assert clip.frames[3].size == (32, 24) and clip.frames[3] is not clip.frames[3]
    assert set(opened) == {"00003.jpg"}


def test_the_parent_folder_will_do(davis: Path, spair: Path) -> None:
    for name, folder in (("davis2017", davis), ("spair71k", spair)):
        assert _one(f"{name}={folder.parent}").sha256 == _one(f"{name}={folder}").sha256


def test_masks_every_nth_frame_make_the_clip(davis: Path) -> None:
    for t in (1, 3):
        (davis / f"Annotations/480p/goat/{t:05d}.png").unlink()
    clip = _clip(_one(f"davis2017={davis}"))
    shades = [round(np.asarray(f).mean() / 10) - 2 for f in clip.frames]
    assert shades == [0, 2, 4] and (clip.masks[1] == trees.labels(2)).all()


def test_masks_of_davis_2016_are_refused(davis: Path) -> None:
    first = davis / "Annotations/480p/goat/00000.png"
    Image.fromarray((trees.labels(0) > 0).astype(np.uint8) * 255).save(first)
    with pytest.raises(ValueError, match=r"00000\.png: expected object labels 1\.\.n .*2016"):
        load_units([f"davis2017={davis}"])
    assert "2016" in check(f"davis2017={davis}")[0]
    trees.mask(first, trees.labels(0))
    other = davis / "Annotations/480p/ants/00000.png"
    Image.fromarray((trees.labels(0) > 0).astype(np.uint8) * 255).save(other)
    _refuses(_one(f"davis2017={davis}"), 1, str(other), "DAVIS-2016")
    void = trees.labels(0)
    void[0] = 255
    trees.mask(other, void)  # void beside real labels is DAVIS-2017
    assert 255 in _clip(_one(f"davis2017={davis}"), 1).masks[0]


def test_a_davis_2016_folder_is_named(davis: Path) -> None:
    (davis / "ImageSets/2017").rename(davis / "ImageSets/480p")
    with pytest.raises(FileNotFoundError, match="lists of DAVIS-2016"):
        load_units([f"davis2017={davis}"])


Break = Callable[[Path], object]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: (d / "Annotations/480p/goat/00002.png").unlink(), ["00002.png", "1 of 5"]),
        (lambda d: (d / "Annotations/480p/goat/00000.png").unlink(), ["00000.png"]),
        (lambda d: (d / "Annotations/480p/goat/00004.png").unlink(), ["00004.png"]),
        (lambda d: (d / "JPEGImages/480p/goat/00002.jpg").unlink(), ["00002.jpg", "frame"]),
        (lambda d: shutil.rmtree(d / "JPEGImages/480p/goat"), ["JPEGImages/480p/goat", "none"]),
        (lambda d: shutil.rmtree(d / "Annotations/480p/goat"), ["Annotations/480p/goat", "none"]),
        (lambda d: _cut(d / "JPEGImages/480p/goat/00003.jpg"), ["00003.jpg", "truncated"]),
        (
            lambda d: (d / "JPEGImages/480p/goat/00003.jpg").write_bytes(b""),
            ["00003.jpg", "0 bytes"],
        ),
        (lambda d: (d / "Annotations/480p/goat/00003.png").write_bytes(b"PNG"), ["00003.png"]),
        (
            lambda d: trees.photo(d / "JPEGImages/480p/goat/00001.jpg", 9, (16, 24)),
            ["00001.jpg", "32 x 24", "16 x 24"],
        ),
        (
            lambda d: trees.mask(d / "Annotations/480p/goat/00000.png", np.zeros((24, 32))),
            ["00000.png", "background only"],
        ),
        (
            lambda d: Image.new("RGB", (32, 24)).save(d / "Annotations/480p/goat/00001.png"),
            ["00001.png", "mode P", "RGB"],
        ),
    ],
)
def test_a_broken_clip_is_left_out_with_one_line(
    davis: Path, harm: Break, words: list[str]
) -> None:
    harm(davis)
    units = _one(f"davis2017={davis}")
    _refuses(units, 0, str(davis), *words)
    assert len(list(_clip(units, 1).frames)) == 5  # the other clip is untouched
    problems = check(f"davis2017={davis}")
    assert problems and all(word in problems[0] for word in words)


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (lambda d: (d / "ImageSets/2017/val.txt").write_text("\n"), ValueError, "empty list"),
        (lambda d: (d / "ImageSets/2017/val.txt").write_text("../x"), ValueError, "plain names"),
        (lambda d: (d / "ImageSets/2017/val.txt").write_text("a\na"), ValueError, "'a' again"),
        (
            lambda d: (d / "ImageSets/2017/val.txt").write_bytes(b"\xff\xfe\x80"),
            ValueError,
            "UTF-8",
        ),
        (lambda d: (d / "ImageSets/2017/val.txt").unlink(), FileNotFoundError, "val.txt"),
        (lambda d: shutil.rmtree(d / "Annotations"), FileNotFoundError, "Annotations/480p"),
        (shutil.rmtree, FileNotFoundError, "no such folder"),
    ],
)
def test_a_broken_tree_stops_with_one_line(
    davis: Path, harm: Break, error: type[Exception], says: str
) -> None:
    harm(davis)
    with pytest.raises(error, match=says) as caught:
        load_units([f"davis2017={davis}"])
    assert str(davis) in str(caught.value) and "\n" not in str(caught.value)
    assert check(f"davis2017={davis}") == [str(caught.value)]


def test_digests_see_names_sizes_and_annotations_but_not_photo_pixels(davis: Path) -> None:
    def now() -> str:
        return _one(f"davis2017={davis}").sha256

    before = now()
    frame = davis / "JPEGImages/480p/goat/00001.jpg"
    frame.write_bytes(bytes(frame.stat().st_size))
    assert now() == before
    frame.write_bytes(b"x")
    assert now() != before
    trees.photo(frame, 10)
    assert now() == before
    trees.mask(davis / "Annotations/480p/goat/00001.png", trees.labels(1)[:, ::-1])
    assert now() != before


def test_spair_reads_points_boxes_and_photos(spair: Path) -> None:
    units = _one(f"spair71k={spair}")
    assert (units.task, units.split) == ("semantic_correspondence", "test") and len(units) == 8
    at = units.ids.index("000002-a-c:cat")
    pair = _pair(units, at)
    assert pair.id == "000002-a-c:cat" and pair.category == pair.cluster == "cat"
    assert pair.source_xy.tolist() == [[6, 6], [12, 9]]
    assert pair.target_xy.tolist() == [[7, 8], [15, 11]]
    assert pair.target_box == (3, 4, 25, 20)
    shades = [np.asarray(image).mean() for image in (pair.source, pair.target)]
    assert np.allclose(shades, [20, 60], atol=2)
    for i, name in enumerate(units.ids):
        assert _pair(units, i).id == name


def test_spair_clusters_hold_all_pairs_that_share_a_photo(tmp_path: Path, spair: Path) -> None:
    assert _one(f"spair71k={spair}").cluster == "category"
    split = trees.spair(
        tmp_path / "b", {"cat|1": ["a", "b", "c"], "cat|2": ["x", "y"], "dog": ["a", "d"]}
    )
    units = _one(f"spair71k={split}")
    assert units.cluster == "linked photos"
    where: dict[tuple[str, str], set[str]] = {}
    for i, name in enumerate(units.ids):
        pair, (_, source, target) = _pair(units, i), name.split(":")[0].split("-")
        for photo in (source, target):
            where.setdefault((pair.category, photo), set()).add(pair.cluster)
    assert all(len(clusters) == 1 for clusters in where.values())
    assert {c for cs in where.values() for c in cs} == {"cat 1", "cat 2", "dog"}
    alone = _one(f"spair71k={trees.spair(tmp_path / 'c', {'cat': ['a', 'b', 'c']})}")
    assert alone.cluster == "source photo"
    assert {_pair(alone, i).cluster for i in range(6)} == {"cat/a", "cat/b", "cat/c"}


def test_a_limit_keeps_every_spair_category(tmp_path: Path) -> None:
    photos = {c: [f"{c}{i}" for i in range(5)] for c in ("boat", "cat", "dog")}
    units = _one(f"spair71k={trees.spair(tmp_path / 's', photos)}")
    some = units.head(12)
    assert Counter(i.split(":")[1] for i in some.ids) == {"boat": 4, "cat": 4, "dog": 4}
    assert len({i.split("-")[1] for i in some.ids}) > 6  # not one source photo after the other
    assert len(set(units.ids)) == 60 and _pair(some, 11).id == units.ids[11]


def _edit(root: Path, **fields: object) -> None:
    path = root / "PairAnnotation/test/000001-a-b:cat.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda d: (d / "PairAnnotation/test/000001-a-b:cat.json").unlink(),
            ["000001-a-b:cat.json"],
        ),
        (
            lambda d: (d / "PairAnnotation/test/000001-a-b:cat.json").rename(
                d / "PairAnnotation/test/000001-a-b_cat.json"
            ),
            ["000001-a-b:cat.json", "without the ':'"],
        ),
        (lambda d: (d / "PairAnnotation/test/000001-a-b:cat.json").write_text("{"), ["JSON"]),
        (lambda d: (d / "PairAnnotation/test/000001-a-b:cat.json").write_text("[]"), ["object"]),
        (lambda d: _edit(d, src_kps=[]), ["src_kps"]),
        (lambda d: _edit(d, src_kps=[[1, 2, 3], [4, 5, 6]]), ["src_kps", "[1, 2, 3]"]),
        (lambda d: _edit(d, src_kps=[[1, None], [2, 3]]), ["src_kps", "None"]),
        (lambda d: _edit(d, trg_kps=[[1, 2]]), ["as many trg_kps", "found 1 and 2"]),
        (lambda d: _edit(d, trg_bndbox=[5, 5, 5, 9]), ["trg_bndbox"]),
        (lambda d: _edit(d, trg_bndbox=[5, 5]), ["trg_bndbox", "4 or more"]),
        (lambda d: _edit(d, src_imname="../../a.jpg"), ["src_imname", "../../a.jpg"]),
        (lambda d: _edit(d, trg_imsize=[64, 48, 3]), ["b.jpg", "64 x 48", "32 x 24"]),
        (lambda d: (d / "JPEGImages/cat/b.jpg").unlink(), ["cat/b.jpg", "no such file"]),
        (lambda d: _cut(d / "JPEGImages/cat/b.jpg"), ["cat/b.jpg", "truncated"]),
    ],
)
def test_a_broken_pair_is_left_out_with_one_line(
    spair: Path, harm: Break, words: list[str]
) -> None:
    harm(spair)
    units = _one(f"spair71k={spair}")
    _refuses(units, units.ids.index("000001-a-b:cat"), str(spair), *words)
    assert _pair(units, units.ids.index("000007-a-d:dog")).category == "dog"
    problems = check(f"spair71k={spair}")
    assert problems and all(word in problems[0] for word in words)


def test_spair_names_of_another_form_are_refused(spair: Path) -> None:
    (spair / "Layout/large/test.txt").write_text("000001-a-b:cat\ncat_000002")
    with pytest.raises(ValueError, match=r"expected pair names like .* found 'cat_000002'"):
        load_units([f"spair71k={spair}"])


def test_no_photo_is_read_to_make_a_set(spair: Path, davis: Path) -> None:
    for folder in (spair, davis):
        for path in folder.rglob("*.jpg"):
            path.write_bytes(b"not a photo")
    sets = load_units([f"davis2017={davis}", f"spair71k={spair}"])
    assert [len(s) for s in sets] == [2, 8]


def test_specs_tasks_and_limits(davis: Path, spair: Path) -> None:
    specs = ["scenes", f"davis2017={davis}", f"spair71k={spair}"]
    sets = load_units(specs, limit=2)
    assert len(sets) == 8 and all(len(s) == 2 for s in sets)
    one = load_units(specs, tasks=["temporal_correspondence"], limit=1)
    assert [(s.dataset, len(s)) for s in one] == [("scenes", 1), ("davis2017", 1)]
    assert len(load_units(["scenes"], tasks=["cosegmentation"], limit=99)[0]) == 99


@pytest.mark.parametrize(
    ("specs", "options", "says"),
    [
        ([], {}, "at least one of scenes, davis2017"),
        (["coco=x"], {}, "expected one of scenes, davis2017, davis2016, .*, found 'coco'"),
        (["davis2017"], {}, "expected davis2017=DIR, found 'davis2017'"),
        (["davis2017="], {}, "expected davis2017=DIR"),
        (["scenes=here"], {}, "`scenes` without a folder"),
        (["scenes", "scenes"], {}, "scenes 2 times"),
        (["scenes"], {"tasks": ["ocr"]}, "task: expected one of .* found 'ocr'"),
        (
            ["davis2017=x"],
            {"tasks": ["cosegmentation"]},
            r"cosegmentation: expected data that offers it \(scenes, msrc\), found davis2017",
        ),
        (["scenes"], {"limit": 0}, "limit: expected at least 1, found 0"),
    ],
)
def test_wrong_requests_are_refused(specs: list[str], options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        load_units(specs, **options)
    assert "\n" not in str(caught.value)


def test_the_table_and_a_clean_check(davis: Path, spair: Path) -> None:
    rows = dict(CATALOG)
    editions = ("davis2017", "davis2016")
    readers = (*editions, "spair71k", "pascal5i", "msrc", "imagenet_s", "refcoco", "blink")
    assert [name for name in rows if name != "mcq"] == ["scenes", *readers]
    assert "mcq" in rows and rows["mcq"].tasks == ("mcq",)
    for name in readers:
        assert rows[name].spec == f"{name}=DIR" and rows[name].tree and rows[name].size
    assert rows["davis2017"].spec == "davis2017=DIR" and "00000.png" in rows["davis2017"].tree
    assert rows["scenes"].spec == "scenes" and len(rows["scenes"].tasks) == 7
    assert check("scenes") == check(f"davis2017={davis}") == check(f"spair71k={spair}") == []


def test_check_counts_what_it_does_not_list(tmp_path: Path) -> None:
    root = trees.davis(tmp_path / "DAVIS", clips=tuple(f"c{i}" for i in range(53)), frames=3)
    shutil.rmtree(root / "Annotations/480p")
    (root / "Annotations/480p").mkdir()
    problems = check(f"davis2017={root}")
    assert len(problems) == 51 and problems[-1] == "... and 3 more"


@pytest.mark.shared
def test_real_photos() -> None:
    specs = [f"davis2017={DATA / 'DAVIS'}", f"spair71k={DATA}"]
    clips, pairs = load_units(specs)
    assert clips.ids == ("blackswan", "camel", "bmx-trees") and len(pairs) == 6
    for i in range(3):
        clip = _clip(clips, i)
        assert len(clip.frames) == 20 and clip.frames[7].size == (854, 480)
        assert set(np.unique(clip.masks[7])) == {0, 1}
    pair = _pair(pairs, pairs.ids.index("000002-0244-0465:horse"))
    assert len(pair.source_xy) == 11 and pair.target_xy[0].tolist() == [286, 119]
    assert pair.target.size == (288, 162) and pair.target_box == (219, 46, 288, 143)
    assert [check(spec) for spec in specs] == [[], []]
