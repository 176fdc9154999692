"""The run folder: claimed, taken up or refused, and never half written."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kvfix.data.scenes.units import scene_units
from kvfix.runs.fingerprint import versions
from kvfix.runs.folder import RunFolder, claimed, data_card, model_card
from kvfix.runs.lock import InUse
from kvfix.runs.resume import LEFTOVERS, OtherRun, read_run

SAME = {"weights": "aa", "adapter": None, "heads": False, "data": {"scenes/x/test": "11"}}


def claim(folder: Path, *, kind: str = "diagnose", **changed: Any) -> RunFolder:
    return RunFolder(folder, kind=kind, command="kvfix diagnose", fingerprint=SAME | changed)


def test_a_new_folder_has_a_record_at_once(tmp_path: Path) -> None:
    run = claim(tmp_path / "deep" / "run")
    record = read_run(tmp_path / "deep" / "run")
    assert record == run.record and not run.resumed
    assert record["kvfix"] == "0.1.0" and record["kind"] == "diagnose"
    assert record["command"] == "kvfix diagnose" and record["complete"] is False
    assert record["fingerprint"] == SAME and record["seconds"] == 0.0
    assert {"torch", "transformers", "peft", "python"} <= record["versions"].keys()


def test_the_same_run_is_taken_up(tmp_path: Path) -> None:
    first = claim(tmp_path)
    first.save(seconds=2.04, complete=True, results=[{"value": 0.5}])
    again = claim(tmp_path)
    assert again.resumed and again.record["started"] == first.record["started"]
    assert read_run(tmp_path)["complete"] is False
    again.save(seconds=1.0, complete=True)
    assert read_run(tmp_path)["seconds"] == 3.0  # both starts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json"]


@pytest.mark.parametrize(
    ("changed", "says", "silent"),
    [
        ({"weights": "bb"}, "weights: then 'aa', now 'bb'", "data"),
        ({"adapter": "cc"}, "adapter: then None, now 'cc'", "weights"),
        ({"heads": True}, "heads: then False, now True", "weights"),
        ({"more": 1}, "more: then None, now 1", "weights"),
        (
            {"data": {"scenes/x/test": "11", "davis2017/y/val": "22"}},
            "data.davis2017/y/val: then None, now '22'",
            "scenes",
        ),
        ({"kind": "eval"}, "kind: then 'diagnose', now 'eval'", "weights"),
    ],
)
def test_another_run_is_refused_and_what_differs_is_named(
    changed: dict, says: str, silent: str, tmp_path: Path
) -> None:
    claim(tmp_path / "run").save(complete=True, results=[{"value": 0.5}])
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(OtherRun, match="holds another run; choose another --out") as error:
        claim(tmp_path / "run", **changed)
    assert says in str(error.value) and silent not in str(error.value).partition("--out")[2]
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_a_fingerprint_survives_json(tmp_path: Path) -> None:
    claim(tmp_path, layers=(1, 2))  # comes back as a list
    assert claim(tmp_path, layers=(1, 2)).resumed


def test_a_foreign_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OtherRun, match="expected a new, empty or run folder, found other files"):
        claim(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_folders_place_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="run"):
        claim(tmp_path / "run")


@pytest.mark.parametrize("left", LEFTOVERS)
def test_a_kill_in_the_very_first_save_does_not_make_the_folder_foreign(
    left: str, tmp_path: Path
) -> None:
    (tmp_path / left).write_text('{"half')
    with claimed(tmp_path, command=""):
        assert not claim(tmp_path).resumed
    assert {p.name for p in tmp_path.iterdir()} <= {"run.json", "run.new"}


def test_a_folder_is_claimed_before_anything_is_loaded(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", command="kvfix eval"):
        with pytest.raises(InUse, match="kvfix eval"), claimed(tmp_path / "run", command=""):
            pass
        claim(tmp_path / "run")
    (tmp_path / "thesis.tex").write_text("years of work")
    before = tmp_path.stat().st_mtime_ns
    with pytest.raises(OtherRun, match="found other files"), claimed(tmp_path, command=""):
        pass
    assert tmp_path.stat().st_mtime_ns == before  # refused before anything is touched


def _crash(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_crash_while_saving_leaves_the_old_record(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = claim(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with monkeypatch.context() as crash:
        crash.setattr(where, _crash)
        with pytest.raises(KeyboardInterrupt):
            run.save(complete=True, results=[{"value": 0.5}] * 100)
    assert (tmp_path / "run.json").read_bytes() == before
    assert claim(tmp_path).resumed


def test_numbers_that_json_cannot_hold_never_reach_the_record(tmp_path: Path) -> None:
    run = claim(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        run.save(results=[{"value": float("nan")}])
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kvfix": "0.1.0"}'])
def test_a_record_that_is_none_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=str(tmp_path)):
        claim(tmp_path)
    assert (tmp_path / "run.json").read_text() == text


def test_reading_asks_for_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a run folder with run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: expected JSON"):
        read_run(tmp_path)


def test_cards_identify_model_and_data() -> None:
    adapter = SimpleNamespace(folder=Path("lora"), sha256="bb")
    mlm = SimpleNamespace(
        id="m",
        family=SimpleNamespace(model_type="llava"),
        revision=None,
        sha256="aa",
        adapter=adapter,
        dtype=torch.bfloat16,
        warnings=("may be of another model",),
        processor_id=None,
        processor_sha256="pp",
    )
    assert model_card(mlm) == {
        "id": "m",
        "family": "llava",
        "revision": None,
        "sha256": "aa",
        "adapter": "lora",
        "adapter_sha256": "bb",
        "dtype": "bfloat16",
        "warnings": ["may be of another model"],
        "processor": None,
        "processor_sha256": "pp",
    }
    mlm.adapter = None
    assert model_card(mlm)["adapter"] is None and model_card(mlm)["adapter_sha256"] is None
    units = scene_units("cosegmentation", n=3)
    [card] = data_card([units])
    assert card == {
        "dataset": "scenes",
        "task": "cosegmentation",
        "split": "test",
        "n": 3,
        "sha256": units.sha256,
    }
    assert versions()["torch"] == version("torch") and versions()["numpy"] == np.__version__
    assert json.dumps(versions())
