"""The BLINK reader on small hub folders, whole and broken, and questions among other units."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import blink_files
import datasets
import numpy as np
import pytest
from blink_files import blink, cell, encoded, row, write
from commands import call
from PIL import Image
from places import SHARED

from kvfix.data.catalog import check, load_units, notes
from kvfix.data.readers.blink import CONFIGS, DISCLAIMED, DISCLAIMER
from kvfix.data.scenes.questions import SKILLS
from kvfix.data.scenes.units import DEFAULT_N
from kvfix.data.units import BadUnit, Question, UnitSet

DATA = SHARED / "data"
COUNTS = {"Jigsaw": 3, "Multi-view_Reasoning": 2, "Counting": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return blink(tmp_path / "BLINK", COUNTS)


def _set(folder: Path) -> UnitSet:
    [units] = load_units([f"blink={folder}"], questions=True)
    return units


def _question(units: UnitSet, index: int = 0) -> Question:
    question = units.load(index)
    assert isinstance(question, Question)
    return question


def _plain(path: Path, *changed: dict) -> Path:
    """A plain folder whose questions are changed as told."""
    rows = [row("Counting", k, **c) for k, c in enumerate(changed, start=1)]
    write(path / "some.parquet", rows)
    return path


def test_questions_come_as_the_hub_has_them(folder: Path) -> None:
    units = _set(folder)
    assert (units.task, units.dataset, units.split) == ("mcq", "blink", "val")
    assert units.cluster == "question" and len(units) == 9
    q = _question(units, units.ids.index("val_Jigsaw_3"))
    assert (q.id, q.cluster, q.sub_task) == ("val_Jigsaw_3", "val_Jigsaw_3", "Jigsaw")
    assert q.prompt == "Look. Where is thing 3?\nSelect one.\n(A) left\n(B) right\n(C) up"
    assert (q.question, q.choices) == ("Where is thing 3?", ("left", "right", "up"))
    assert (q.answer, q.letter) == (1, "(B)")
    assert [i.size for i in q.images] == [(20, 10)] * 3 and {i.mode for i in q.images} == {"RGB"}
    assert [round(np.asarray(i).mean()) for i in q.images] == pytest.approx([70, 71, 72], abs=2)
    assert len(_question(units, units.ids.index("val_Counting_1")).images) == 1


def test_configs_take_turns_so_that_a_limit_keeps_all(folder: Path) -> None:
    units = _set(folder)
    assert units.ids[:3] == ("val_Counting_1", "val_Jigsaw_1", "val_Multi-view_Reasoning_1")
    assert [len(i.rsplit("_", 1)[1]) for i in units.ids] == [1] * 9
    assert units.ids[-1] == "val_Counting_4"
    [few] = load_units([f"blink={folder}"], limit=3, questions=True)
    assert few.ids == units.ids[:3] and few.sha256 == units.sha256
    assert Counter(_question(units, i).sub_task for i in range(9)) == COUNTS


def test_the_disclaimer_stands_before_three_tasks_only(tmp_path: Path) -> None:
    units = _set(blink(tmp_path, dict.fromkeys(CONFIGS, 1)))
    given = {q.sub_task: q.preamble for q in (_question(units, i) for i in range(14))}
    assert len(given) == 14
    assert {task for task, text in given.items() if text} == set(DISCLAIMED)
    assert set(given.values()) == {"", DISCLAIMER}
    assert set(DISCLAIMED) == {"Forensic_Detection", "Jigsaw", "Art_Style"}
    # zeyofu/BLINK_Benchmark eval/test_benchmark.py, `disclaimer`
    assert DISCLAIMER.startswith("Disclaimer: This is not to make unfair assumptions about the ")
    assert (
        DISCLAIMER.endswith("based on the information I gave you.\n\n") and len(DISCLAIMER) == 248
    )


def test_official_counts_add_up() -> None:
    assert len(CONFIGS) == 14 and sum(CONFIGS.values()) == 1901


@pytest.mark.parametrize("group", [None, 1, 2])
def test_row_groups_and_the_order_of_reading_do_not_matter(tmp_path: Path, group: int) -> None:
    units = _set(blink(tmp_path, {"Counting": 7, "Jigsaw": 5}, group=group))
    names = list(units.ids)
    shuffled = np.random.default_rng(0).permutation([*range(12), *range(12)])
    for i in map(int, shuffled):
        q = _question(units, i)
        number = int(q.id.rsplit("_", 1)[1])
        assert q.id == names[i] and q.question == f"Where is thing {number}?"
        assert np.asarray(q.images[0]).mean() == pytest.approx(20 * number + 10, abs=2)


def test_one_folder_its_parent_one_config_and_plain_folders(folder: Path, tmp_path: Path) -> None:
    whole = _set(folder)
    assert _set(folder.parent).ids == whole.ids and _set(folder.parent).sha256 == whole.sha256
    assert len(_set(folder / "Jigsaw")) == 3
    rows = [
        row(c, k, images=3 if c == "Jigsaw" else 1)
        for c, n in COUNTS.items()
        for k in range(1, n + 1)
    ]
    flat = tmp_path / "flat"
    write(flat / "a.parquet", rows[:4])
    write(flat / "b.parquet", rows[4:], group=2)
    assert _set(flat).ids == whole.ids and _set(flat).sha256 == whole.sha256
    write(flat / "test-00000-of-00001.parquet", [row("Counting", 9, answer="hidden")])
    assert _set(flat).ids == whole.ids
    converted = tmp_path / "converted"
    write(converted / "Counting/val/0000.parquet", [row("Counting", 1)])
    write(converted / "Counting/test/0000.parquet", [row("Counting", 9, answer="hidden")])
    assert _set(converted).ids == ("val_Counting_1",)


def test_what_the_datasets_library_saves_and_decodes_is_the_same(
    folder: Path, tmp_path: Path
) -> None:
    turned = row("Counting", 5)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    turned["image_1"] = {"bytes": encoded(100, exif=exif), "path": None}
    write(folder / "Counting/val-00001-of-00002.parquet", [turned])
    files = [str(p) for p in sorted(folder.rglob("*.parquet"))]
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    loaded = loaded.cast_column("image_1", datasets.Image())
    (tmp_path / "saved").mkdir()
    loaded.to_parquet(str(tmp_path / "saved/all.parquet"))
    units, saved = _set(folder), _set(tmp_path / "saved")
    assert saved.ids == units.ids
    by_id = {r["idx"]: r for r in loaded}
    for i in range(len(units)):
        for q in (_question(units, i), _question(saved, i)):
            expected = by_id[q.id]["image_1"].convert("RGB")
            assert np.array_equal(np.asarray(q.images[0]), np.asarray(expected))
            assert q.prompt == by_id[q.id]["prompt"]
    assert _question(units, units.ids.index("val_Counting_5")).images[0].size == (10, 20)


@pytest.mark.parametrize(
    "changed",
    [
        {"answer": "(A)"},
        {"prompt": "Look.\n(A) left\n(B) right\n(C) up"},
        {"image_1": cell(99)},
        {"image_2": cell(99)},
        {"choices": ["left", "right", "down"]},
    ],
)
def test_the_digest_is_of_everything_a_question_is_made_of(tmp_path: Path, changed: dict) -> None:
    one = _set(_plain(tmp_path / "one", {}, {}, {}))
    assert one.sha256 == _set(_plain(tmp_path / "same", {}, {}, {})).sha256
    other = _set(_plain(tmp_path / "other", {}, {}, changed))
    assert other.ids == one.ids and other.sha256 != one.sha256


def test_questions_on_one_first_image_are_one_cluster(tmp_path: Path) -> None:
    rows = [row("Counting", 1), row("Counting", 2), row("Counting", 3, image_1=cell(20))]
    rows.append(row("Counting", 4, image_2=cell(20)))  # again, but not as its first image
    rows.append(row("Jigsaw", 1))  # the same image in another config
    write(tmp_path / "all.parquet", rows)
    units = _set(tmp_path)
    clusters = {q.id: q.cluster for q in (_question(units, i) for i in range(5))}
    assert clusters["val_Counting_1"] == clusters["val_Counting_3"] == "val_Counting_1"
    assert len(set(clusters.values())) == 4 and units.cluster == "first image"
    assert clusters["val_Jigsaw_1"] == "val_Jigsaw_1"


BROKEN: list[tuple[dict, str]] = [
    ({"answer": "hidden"}, r"answer such as '\(A\)', found 'hidden'; the answers of BLINK's test"),
    ({"answer": None}, "found None; the answers"),
    ({"answer": "left"}, r"answer such as '\(A\)', found 'left'$"),
    ({"answer": "(D)"}, r"among 2 choices, found '\(D\)'"),
    ({"choices": ["left"]}, r"2 to 5 choices, found \['left'\]"),
    ({"choices": list("abcdef")}, "2 to 5 choices"),
    ({"choices": ["left", None]}, "2 to 5 choices"),
    ({"prompt": None}, "expected prompt, a text, found None"),
    ({"question": "  "}, "expected question, a text"),
    ({"image_1": None}, "at least one image, found none"),
    ({"image_1": {"bytes": None, "path": "a.jpg"}}, "bytes of image 1, found none or a path"),
    (
        {"image_2": {"bytes": b"no image", "path": None}},
        "image 2: expected an image, found 8 bytes",
    ),
    ({"image_1": {"bytes": encoded(9)[:300], "path": None}}, "image 1: expected an image"),
    ({"idx": None}, r"expected idx, a question id, found None"),
    ({"sub_task": "Chess"}, "sub_task to be one of Art_Style, .* found 'Chess'"),
    ({"sub_task": None}, "found 'no sub_task'"),
]


@pytest.mark.parametrize(("changed", "says"), BROKEN)
def test_bad_rows_are_bad_units_and_problems(tmp_path: Path, changed: dict, says: str) -> None:
    folder = _plain(tmp_path, {}, changed, {})
    units = _set(folder)
    assert len(units) == 3
    bad = [i for i in range(3) if not _readable(units, i)]
    assert len(bad) == 1
    with pytest.raises(BadUnit, match=says) as caught:
        units.load(bad[0])
    assert "\n" not in str(caught.value) and "some.parquet: row 1" in str(caught.value)
    assert check(f"blink={folder}") == [str(caught.value)]


def _readable(units: UnitSet, index: int) -> bool:
    try:
        units.load(index)
    except BadUnit:
        return False
    return True


def test_a_row_of_another_config_is_a_bad_unit(tmp_path: Path) -> None:
    write(tmp_path / "Jigsaw/val-0.parquet", [row("Jigsaw", 1), row("Counting", 1)])
    units = _set(tmp_path)
    assert _question(units, 0).sub_task == "Jigsaw"
    with pytest.raises(BadUnit, match="expected sub_task Jigsaw, as its folder, found Counting"):
        units.load(1)


def test_another_spelling_of_a_config_is_understood(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row("Multi-view_Reasoning", 1, sub_task="multi view reasoning")])
    assert _question(_set(tmp_path)).sub_task == "Multi-view_Reasoning"


def _not_parquet(root: Path) -> None:
    blink(root, {"Counting": 1})
    (root / "Counting/val-00000-of-00001.parquet").write_bytes(b"PAR1 nothing")


def _cut_off(root: Path) -> None:
    file = blink(root, {"Counting": 9}) / "Counting/val-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-200])


def _without_prompts(root: Path) -> None:
    rows = [row("Counting", 1)]
    del rows[0]["prompt"]
    write(root / "a.parquet", rows)


WRONG_FOLDERS: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: None, "expected <config>/val-.*parquet or parquet files in it, found none"),
    (lambda root: root.rmdir(), "expected the BLINK folder, found no such folder"),
    (
        lambda root: write(root / "Counting/test-0.parquet", [row("Counting", 1)]),
        r"found only test files: the answers of BLINK's test split are not public.*val split",
    ),
    (
        lambda root: write(root / "a.parquet", [row("Counting", 1, answer="hidden")]),
        r"answers such as '\(A\)', found none: the answers of BLINK's test split",
    ),
    (
        lambda root: write(root / "a.parquet", [row("Counting", 1), row("Counting", 1)]),
        "every idx once, found 'val_Counting_1' again",
    ),
    (_not_parquet, "expected a parquet file, found a broken one"),
    (_cut_off, "expected a parquet file, found a broken one"),
    (_without_prompts, "found no prompt among idx, question"),
    (lambda root: write(root / "a.parquet", []), "found no idx"),
]


@pytest.mark.parametrize(("spoil", "says"), WRONG_FOLDERS)
def test_folders_that_cannot_be_meant_are_refused(
    tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    folder = tmp_path / "BLINK"
    folder.mkdir()
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        _set(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_making_a_set_decodes_no_image(folder: Path) -> None:
    rows = [row("Jigsaw", 1, image_1={"bytes": b"junk", "path": None})]
    write(folder / "Jigsaw/val-00000-of-00001.parquet", rows)
    assert "val_Jigsaw_1" in _set(folder).ids


def test_a_file_that_changes_during_a_run_is_a_bad_unit(folder: Path) -> None:
    units = _set(folder)
    write(folder / "Counting/val-00000-of-00001.parquet", [row("Counting", 1)])
    with pytest.raises(BadUnit, match="expected row 3, found fewer; the file was changed"):
        units.load(units.ids.index("val_Counting_4"))


def test_what_is_there_is_noted_and_no_error(folder: Path, tmp_path: Path) -> None:
    spec = f"blink={folder}"
    assert check(spec) == []
    there, absent, official = notes(spec)
    assert there == "3 of 14 configs, 9 questions: Counting 4, Jigsaw 3, Multi-view_Reasoning 2"
    assert absent.startswith("not there: Art_Style, Forensic_Detection, ")
    assert "Jigsaw" not in absent and "macro accuracy is over what is there" in absent
    assert "has Counting 120, Jigsaw 150, Multi-view_Reasoning 133:" in official
    whole = tmp_path / "whole"
    one = cell(1)
    for config, n in CONFIGS.items():
        rows = [{**row(config, 0), "idx": f"val_{config}_{k}", "image_1": one} for k in range(n)]
        write(whole / config / "val-00000-of-00001.parquet", rows)
    assert [line.split(":")[0] for line in notes(f"blink={whole}")] == [
        "14 of 14 configs, 1901 questions"
    ]
    ended = call("data", "check", spec)
    text = " ".join(ended.err.split())
    assert ended.code == 0 and "note: 3 of 14 configs" in text and text.endswith("complete")


def test_only_callers_that_answer_get_questions(folder: Path) -> None:
    spec = f"blink={folder}"
    assert [u.task for u in load_units(["scenes", spec], questions=True)][-2:] == ["mcq", "mcq"]
    assert "mcq" not in [u.task for u in load_units(["scenes"])]
    both = load_units(["scenes", spec], tasks=["mcq"], questions=True)
    assert [u.dataset for u in both] == ["scenes", "blink"]
    with pytest.raises(ValueError, match="data blink: expected data for probes, found only quest"):
        load_units([spec])
    with pytest.raises(ValueError, match="task mcq: expected a task that probes score"):
        load_units(["scenes"], tasks=["mcq"])


def test_scenes_ask_their_skills_in_turn() -> None:
    [units] = load_units(["scenes"], tasks=["mcq"], questions=True)
    n = len(units)
    assert n == DEFAULT_N["mcq"] and n % len(SKILLS) == 0 and units.cluster == "question"
    assert units.ids[:9] == tuple(f"test_{skill}_0" for skill in SKILLS)
    assert units.ids[9] == "test_Art_Style_1"
    for i in (0, 5, 11, n - 1):
        q = _question(units, i)
        assert q.id == units.ids[i] and q.id == f"test_{q.sub_task}_{i // 9}"
        assert q.preamble == "" and q.official_prompt is None
        assert f"(A) {q.choices[0]}\n(B) {q.choices[1]}" in q.prompt
    [few] = load_units(["scenes"], tasks=["mcq"], limit=12, questions=True)
    assert few.ids == units.ids[:12]


def test_the_helper_writes_the_columns_of_the_hub() -> None:
    assert blink_files.SCHEMA.names == [
        *["idx", "question", "sub_task", "image_1", "image_2", "image_3", "image_4"],
        *["choices", "answer", "prompt", "explanation"],
    ]


@pytest.mark.shared
def test_questions_in_blinks_form() -> None:
    spec = f"blink={DATA / 'BLINK'}"
    units = _set(DATA / "BLINK")
    assert len(units) == 233 and check(spec) == []
    assert notes(spec)[0].startswith("8 of 14 configs, 233 questions: Art_Style 40, Counting 21,")
    marked = json.loads((DATA / "BLINK/points.json").read_text())
    assert set(marked) <= set(units.ids)
    for i in range(0, 233, 7):
        q = _question(units, i)
        assert re.fullmatch(r"val_[\w-]+_\d+", q.id) and q.prompt.count("\n(") == len(q.choices)
        assert bool(q.preamble) == (q.sub_task in ("Art_Style", "Jigsaw"))
