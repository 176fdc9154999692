"""One rule: what a unit raises costs that unit; what hits all, or the machine, ends the run."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_source import FakeSource
from PIL import Image

from kvfix.data.left_out import Attempts, LeftOut, machine_fault, naming, too_many
from kvfix.data.pictures.read import read_picture
from kvfix.data.scenes.units import scene_units
from kvfix.data.units import BadUnit, UnitSet
from kvfix.eval.suite import TaskRun, run_task, sample_path
from kvfix.runs.recorder import Listing, Recorder, left_out_of, once
from kvfix.runs.rows import ProbeRow
from kvfix.runs.samples import SampleFile

PAIRS = "semantic_correspondence"


def _row(name: str, score: float) -> ProbeRow:
    return ProbeRow(name, name, PAIRS, "scenes", "value", 0, None, "PCK@0.1", score)


def _raising(units: UnitSet, faults: dict[int, BaseException]) -> UnitSet:
    def load(i: int) -> object:
        if i in faults:
            raise faults[i]
        return units.load(i)

    return replace(units, load=load)


def _run(folder: Path, faults: dict[int, BaseException], *, n: int = 5) -> TaskRun:
    return run_task(_raising(scene_units(PAIRS, n=n), faults), FakeSource(), folder)


def _why(run: TaskRun) -> list[str]:
    return [entry["why"] for entry in run.left_out]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (BadUnit("a.jpg: expected a photo, found rubbish"), "a.jpg: expected a photo, found rubb"),
        (ValueError("absolute aspect ratio"), "absolute aspect ratio"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (KeyError("a\nkey"), "KeyError: 'a\\nkey'"),
        (RuntimeError("shape\n  mismatch"), "RuntimeError: shape mismatch"),
        (AssertionError(), "AssertionError: AssertionError"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "OSError: [Errno 36] File name too lo"),
        (StopIteration(), "StopIteration"),
    ],
)
def test_what_one_unit_raises_leaves_that_one_out(
    fault: Exception, why: str, tmp_path: Path
) -> None:
    run = _run(tmp_path, {2: fault})
    [entry] = run.left_out
    assert entry["id"] == run.units.ids[2] and entry["why"].startswith(why)
    assert "\n" not in entry["why"]
    plain = _run(tmp_path / "plain", {})
    assert list(run.rows) == [r for r in plain.rows if r.id != entry["id"]]
    again = _run(tmp_path, {})  # a second start does not try it again
    assert again.left_out == run.left_out and list(again.rows) == list(run.rows)


def test_a_unit_may_fail_at_any_time_not_only_when_it_is_read(tmp_path: Path) -> None:
    class Failing(FakeSource):
        def _view(self, image: Image.Image):  # type: ignore[no-untyped-def]
            view = super()._view(image)
            if self.seen == 6:
                raise RuntimeError("expected finite features")
            return view

    run = run_task(scene_units(PAIRS, n=5), Failing(), tmp_path)
    assert [e["id"] for e in run.left_out] == [run.units.ids[2]]


def test_a_score_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    units = scene_units(PAIRS, n=2)
    with Recorder(units, tmp_path / "a.jsonl") as recorder:
        for name, score in zip(units.ids, (0.5, float("nan")), strict=True):
            recorder.unit(name, lambda n=name, s=score: [_row(n, s)])
    [entry] = left_out_of(units, tmp_path / "a.jsonl")
    assert entry["why"] == "expected finite numbers, found NaN or infinity in score"


def test_a_fault_that_hits_every_unit_ends_the_run_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    def load(i: int) -> object:
        raise TypeError(f"unit {i}: no such argument")

    units = replace(scene_units(PAIRS, n=40), load=load)
    with pytest.raises(TypeError, match="unit 0: no such argument") as caught:
        run_task(units, FakeSource(), tmp_path)
    assert caught.value.__notes__ == ["The first 3 units failed alike, so that none is left out."]
    assert not SampleFile(sample_path(tmp_path, units)).done
    mended = _run(tmp_path, {})
    assert not mended.left_out and len({r.id for r in mended.rows}) == 5


def test_of_fewer_than_three_units_all_must_fail(tmp_path: Path) -> None:
    def load(i: int) -> object:
        raise TypeError("no")

    with pytest.raises(TypeError) as caught:
        run_task(replace(scene_units(PAIRS, n=1), load=load), FakeSource(), tmp_path)
    assert caught.value.__notes__ == ["The first unit failed alike, so that none is left out."]


def test_different_faults_and_bad_units_are_no_fault_of_the_run(tmp_path: Path) -> None:
    faults = {0: KeyError("a"), 1: TypeError("b"), 2: RuntimeError("c")}
    assert len(_run(tmp_path / "kinds", faults).left_out) == 3
    bad = {i: BadUnit("x.jpg: expected a photo, found none") for i in range(5)}
    run = _run(tmp_path / "bad", bad)
    assert len(run.left_out) == 5 and run.too_many_left_out
    mixed = {0: ValueError("a"), 1: BadUnit("b"), 2: ValueError("c")}
    assert _why(_run(tmp_path / "mixed", mixed)) == ["a", "b", "c"]


def test_three_that_fail_alike_after_one_that_did_not_are_left_out(tmp_path: Path) -> None:
    def load(i: int) -> object:
        if i:
            raise TypeError("no such argument")
        return scene_units(PAIRS, n=5).load(0)

    units = replace(scene_units(PAIRS, n=5), load=load)
    assert len(run_task(units, FakeSource(), tmp_path).left_out) == 4
    # What an earlier start has scored counts as well.
    _run(tmp_path / "b", {}, n=1)
    assert len(run_task(units, FakeSource(), tmp_path / "b").left_out) == 4


def test_what_is_held_back_is_written_when_a_unit_succeeds(tmp_path: Path) -> None:
    units = scene_units(PAIRS, n=4)
    path = tmp_path / "a.jsonl"

    def fail() -> list[dict]:
        raise TypeError("no")

    with Recorder(units, path) as recorder:
        recorder.unit(units.ids[0], fail)
        recorder.unit(units.ids[1], fail)
        assert not recorder.file.done
        recorder.unit(units.ids[2], lambda: [_row(units.ids[2], 1.0)])
        assert recorder.file.done == set(units.ids[:3])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["id"] for r in lines] == list(units.ids[:3])


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_is_no_fault_of_a_unit(stop: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(stop)):
        _run(tmp_path, {1: stop})
    assert not _run(tmp_path, {}).left_out


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (MemoryError(), MemoryError, "found MemoryError: MemoryError; use a smaller batch"),
        (torch.OutOfMemoryError("CUDA out of memory."), MemoryError, "CUDA out of memory"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
            ),
            MemoryError,
            "expected memory enough",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "No space left"),
        (OSError(errno.EMFILE, "Too many open files"), OSError, "Too many open files"),
    ],
)
def test_what_the_machine_lacks_ends_the_run(
    fault: Exception, kind: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        _run(tmp_path, {3: fault})
    resumed = _run(tmp_path, {})
    assert not resumed.left_out and len({r.id for r in resumed.rows}) == 5


def test_a_fault_that_a_unit_may_have_is_none_of_the_machine() -> None:
    for error in (ValueError("x"), OSError(errno.ENOENT, "x"), RuntimeError("memory of elephants")):
        assert machine_fault(error) is None


# --- batches ---------------------------------------------------------------------------------


def _together(bad: set[int], calls: list[list[int]]) -> Callable[[list[int]], list[str]]:
    """Each unit's result names the batch that it was done in."""

    def what(units: list[int]) -> list[str]:
        calls.append(list(units))
        if culprits := bad & set(units):
            raise ValueError(f"unit {min(culprits)} is bad")
        return [f"{u} of {units}" for u in units]

    return what


def _batch(attempts: Attempts, units: list[int], bad: set[int], unread: set[int] = frozenset()):  # type: ignore[no-untyped-def,assignment]
    calls: list[list[int]] = []

    def load(unit: int) -> int:
        if unit in unread:
            raise BadUnit(f"{unit}.jpg: expected a photo, found none")
        return unit

    return attempts.batch(units, load, _together(bad, calls)), calls


def test_a_batch_is_that_of_the_units_that_are_good() -> None:
    got, calls = _batch(Attempts(9), [0, 1, 2, 3], {2})
    assert got == [
        "0 of [0, 1, 3]",
        "1 of [0, 1, 3]",
        LeftOut("unit 2 is bad"),
        "3 of [0, 1, 3]",
    ]
    assert calls == [[0, 1, 2, 3], [0], [1], [2], [3], [0, 1, 3]]


def test_what_cannot_be_read_costs_no_second_pass() -> None:
    got, calls = _batch(Attempts(9), [0, 1, 2], set(), {1})
    assert got == ["0 of [0, 2]", LeftOut("1.jpg: expected a photo, found none"), "2 of [0, 2]"]
    assert calls == [[0, 2]]
    got, calls = _batch(Attempts(9), [0, 1], set(), {0, 1})
    assert all(isinstance(g, LeftOut) for g in got) and not calls


def test_units_that_fail_only_together_keep_what_they_gave_alone() -> None:
    def what(units: list[int]) -> list[str]:
        if len(units) > 1:
            raise RuntimeError("cannot be padded")
        return [f"{units[0]} alone"]

    assert Attempts(9).batch([0, 1], lambda u: u, what) == ["0 alone", "1 alone"]


def test_a_batch_that_fails_alike_in_every_unit_ends_the_run() -> None:
    with pytest.raises(ValueError, match="unit 0 is bad"):
        _batch(Attempts(9), [0, 1, 2, 3], {0, 1, 2, 3})
    with pytest.raises(ValueError, match="unit 0 is bad"):
        attempts = Attempts(9)
        for unit in range(3):  # batches of one
            _batch(attempts, [unit], {0, 1, 2})


# --- what is said ----------------------------------------------------------------------------


def test_a_line_names_the_pictures_where_the_error_does_not(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.new("RGB", (9, 9)).save(path)
    images = [read_picture(path).image.resize((5, 5)) for path in paths]

    def fail() -> None:
        with naming(images):
            raise ValueError("absolute aspect ratio must be smaller than 200")

    got = Attempts(9).do(fail)
    assert isinstance(got, LeftOut)
    assert got.why == (
        f"{paths[0]}, {paths[1]} and 1 more: absolute aspect ratio must be smaller than 200"
    )

    def told() -> None:
        with naming(images[:1]):
            raise BadUnit(f"{paths[0]}: expected a photo, found rubbish")

    assert Attempts(9).do(told) == LeftOut(f"{paths[0]}: expected a photo, found rubbish")


def test_a_line_is_short_whatever_the_error_says() -> None:
    for error in (BadUnit("x" * 10**6), ValueError("y " * 10**6), KeyError("z\n" * 10**6)):
        got = Attempts(9).do(lambda e=error: (_ for _ in ()).throw(e))
        assert isinstance(got, LeftOut) and len(got.why) < 700 and "\n" not in got.why


def test_five_percent_is_the_bound_everywhere() -> None:
    assert [too_many(*x) for x in ((0, 0), (1, 20), (1, 19), (2, 39), (5, 100))] == [
        *(False, False, True, True, False)
    ]


def test_a_listing_counts_what_it_looked_at_and_entries_are_listed_once() -> None:
    units, listing = scene_units(PAIRS, n=3), Listing(3)

    def fail() -> int:
        raise BadUnit("no")

    assert listing.unit(units, units.ids[0], lambda: 7) == 7
    assert listing.unit(units, units.ids[1], fail) is None
    assert listing.too_many_left_out and listing.looked == 2
    assert once(listing.left_out * 2) == listing.left_out
