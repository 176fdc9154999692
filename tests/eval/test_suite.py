"""The suite: every unit and site scored once, whatever interrupts it, whatever cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_source import LAYERS, FakeSource

from kvfix.data.scenes.units import MAKERS, scene_units
from kvfix.data.units import BadUnit, Clip, Pair, UnitSet
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.suite import TaskRun, run_suite, run_task, sample_path
from kvfix.runs.rows import to_json

PAIRS = "semantic_correspondence"
CLIPS = "temporal_correspondence"
EVERY_SITE = {("vision", None), ("projector", None), *(("value", i) for i in range(LAYERS))}


def spied(units: UnitSet) -> tuple[UnitSet, list[int]]:
    """The same set, and the indices that were loaded."""
    loaded: list[int] = []

    def load(i: int) -> object:
        loaded.append(i)
        return units.load(i)

    return replace(units, load=load), loaded


def broken(units: UnitSet, *bad: int) -> UnitSet:
    """The same set with units that cannot be read."""

    def load(i: int) -> object:
        if i in bad:
            raise BadUnit(f"{i}.jpg: expected a photo, found rubbish")
        return units.load(i)

    return replace(units, load=load)


@pytest.mark.parametrize("task", TASKS)
def test_every_unit_has_one_row_a_site(task: str, tmp_path: Path) -> None:
    units = scene_units(task, n=2)
    run = run_task(units, FakeSource(), tmp_path)
    wanted = {s for s in EVERY_SITE if s[0] == "value"} if TASKS[task].by_text else EVERY_SITE
    assert not run.left_out and not run.too_many_left_out
    for name in units.ids:
        mine = [r for r in run.rows if r.id == name]
        assert len(mine) == len(wanted)
        assert {(r.site, r.layer) for r in mine} == wanted
        assert all(r.rows == len(wanted) and r.cluster == name for r in mine)
    for row in run.rows:
        assert (row.task, row.dataset, row.metric) == (task, "scenes", TASKS[task].metric)
        assert 0 <= row.score <= 1 and 0 <= row.chance <= 1 and 0 < row.ceiling <= 1
        assert row.head is None and row.control is None
        assert not any("_S" in key for key in row.more) and "window" not in row.more
    on_disk = (tmp_path / "samples" / f"{task}.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in on_disk] == [to_json(row) for row in run.rows]


def test_all_tasks_are_the_scenes_tasks() -> None:
    assert set(TASKS) == set(MAKERS)


def test_rows_carry_the_numbers_of_their_own_site(tmp_path: Path) -> None:
    units = scene_units(PAIRS, n=6)

    def load(i: int) -> Pair:
        pair = units.load(i)
        assert isinstance(pair, Pair)
        return replace(pair, target=pair.source, target_xy=pair.source_xy)

    source = FakeSource(noise=(0.0, 9.0, 0.3), apart=True)
    run = run_task(replace(units, load=load), source, tmp_path)
    right = {
        s: sum(r.more["correct"] for r in run.rows if (r.site, r.layer) == s) for s in EVERY_SITE
    }
    # An image against itself: layer 0 sees it as vision does, 2 through fog, 1 not at all.
    assert right["value", 0] == right["vision", None]
    assert right["value", 0] > right["value", 2] > right["value", 1]
    assert all(r.score == r.more["correct"] / r.more["points"] for r in run.rows)


def test_a_second_start_scores_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    run_task(scene_units(PAIRS, n=2), FakeSource(), tmp_path)
    units, loaded = spied(scene_units(PAIRS, n=5))
    source, ticks = FakeSource(), []
    run = run_task(units, source, tmp_path, tick=ticks.append)
    assert loaded == [2, 3, 4] and source.seen == 6
    assert ticks == [PAIRS] * 5  # those done before count in the bar too
    assert list(dict.fromkeys(r.id for r in run.rows)) == list(units.ids)
    units, loaded = spied(units)
    again = run_task(units, FakeSource(), tmp_path)
    assert not loaded and list(again.rows) == list(run.rows)


def test_a_smaller_limit_counts_the_asked_units_only(tmp_path: Path) -> None:
    run_task(scene_units(PAIRS, n=4), FakeSource(), tmp_path)
    units, loaded = spied(scene_units(PAIRS, n=2))
    run = run_task(units, FakeSource(), tmp_path)
    assert {r.id for r in run.rows} == set(units.ids) and not loaded


@pytest.mark.parametrize("stop_after", [0, 1, 5, 6])  # before a unit, and in the middle of one
def test_an_interrupted_run_ends_like_an_uninterrupted_one(stop_after: int, tmp_path: Path) -> None:
    units = scene_units(PAIRS, n=4)
    whole = run_task(units, FakeSource(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_task(units, FakeSource(stop_after=stop_after), tmp_path / "torn")
    assert len(sample_lines(tmp_path / "torn")) == stop_after // 2 * len(EVERY_SITE)
    torn = run_task(units, FakeSource(), tmp_path / "torn")
    assert list(torn.rows) == list(whole.rows)
    assert sample_lines(tmp_path / "torn") == sample_lines(tmp_path / "whole")


def test_a_run_with_damaged_samples_ends_like_one_without(tmp_path: Path) -> None:
    whole = run_task(scene_units(PAIRS, n=5), FakeSource(), tmp_path)
    text = sample_path(tmp_path, whole.units).read_bytes()
    lines = text.splitlines(keepends=True)
    per_unit = len(EVERY_SITE)
    lines[per_unit] = b"\0" * 512  # swallows the first row of the second unit
    lines[3 * per_unit - 1] = lines[3 * per_unit - 1][:-1]  # glues the third to the fourth
    sample_path(tmp_path, whole.units).write_bytes(b"".join(lines))
    units, loaded = spied(whole.units)
    again = run_task(units, FakeSource(), tmp_path)
    assert sorted(loaded) == [1, 2, 3]
    assert list(again.rows) == list(whole.rows)
    assert sample_path(tmp_path, units).read_bytes() == text


def sample_lines(folder: Path) -> list[str]:
    path = folder / "samples" / f"{PAIRS}.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_a_unit_that_cannot_be_read_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    units = broken(scene_units(PAIRS, n=4), 1)
    run = run_task(units, FakeSource(), tmp_path)
    assert [r.id for r in list(run.rows)[:: len(EVERY_SITE)]] == [units.ids[i] for i in (0, 2, 3)]
    [entry] = run.left_out
    assert entry == {
        "task": PAIRS,
        "dataset": "scenes",
        "id": units.ids[1],
        "why": "1.jpg: expected a photo, found rubbish",
    }
    again, loaded = spied(units)
    resumed = run_task(again, FakeSource(), tmp_path)
    assert not loaded and resumed.left_out == run.left_out and list(resumed.rows) == list(run.rows)


def test_a_frame_that_breaks_while_a_clip_streams_leaves_out_the_clip(tmp_path: Path) -> None:
    units = scene_units(CLIPS, n=3)

    class Torn(list):
        def __getitem__(self, at):  # type: ignore[override]
            if isinstance(at, slice):
                return Torn(super().__getitem__(at))
            return super().__getitem__(at)

        def __iter__(self):
            yield self[0]
            yield self[1]
            raise BadUnit("00002.jpg: expected a photo, found a broken file")

    def load(i: int) -> Clip:
        clip = units.load(i)
        assert isinstance(clip, Clip)
        return replace(clip, frames=Torn(clip.frames)) if i == 1 else clip

    run = run_task(replace(units, load=load), FakeSource(), tmp_path)
    assert {r.id for r in run.rows} == {units.ids[0], units.ids[2]}
    assert [e["why"][:9] for e in run.left_out] == ["00002.jpg"]


@pytest.mark.parametrize(
    ("bad", "total", "too_many"), [(0, 1, False), (1, 20, False), (1, 19, True), (2, 39, True)]
)
def test_more_than_five_percent_left_out_is_flagged(bad: int, total: int, too_many: bool) -> None:
    assert TaskRun(scene_units(PAIRS, n=total), [], [{}] * bad).too_many_left_out is too_many


def test_controls_and_datasets_have_files_of_their_own(tmp_path: Path) -> None:
    units = scene_units(PAIRS, n=1)
    photos = replace(units, dataset="spair71k")
    paths = [
        sample_path(tmp_path, u, control) for u in (units, photos) for control in (None, "random")
    ]
    assert [p.name.removeprefix(PAIRS) for p in paths] == [
        ".jsonl",
        ".random.jsonl",
        ".spair71k.jsonl",
        ".spair71k.random.jsonl",
    ]
    runs = run_suite([units, photos], FakeSource(), tmp_path)
    control = run_suite([units], FakeSource(noise=(9, 9, 9)), tmp_path, control="random")
    assert [next(iter(r.rows)).dataset for r in runs] == ["scenes", "spair71k"]
    assert {r.control for r in control[0].rows} == {"random"}
    assert [p.exists() for p in paths] == [True, True, True, False]


def test_scores_do_not_depend_on_the_order_of_starts(tmp_path: Path) -> None:
    starts: list[Callable[[Path], TaskRun]] = [
        lambda f: run_task(scene_units(PAIRS, n=5), FakeSource(), f),
        lambda f: [run_task(scene_units(PAIRS, n=n), FakeSource(), f) for n in (1, 3, 5)][-1],
    ]
    once, thrice = (start(tmp_path / str(k)) for k, start in enumerate(starts))
    assert list(once.rows) == list(thrice.rows)
