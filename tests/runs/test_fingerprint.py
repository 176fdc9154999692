"""All that moves a score is in the fingerprint; what may mix is recorded at every start."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_folders
import pytest
import torch

from kvfix.mlm.load import load_mlm
from kvfix.runs import fingerprint as fp
from kvfix.runs.fingerprint import (
    LATER,
    attention_of,
    differences,
    flat,
    mixed,
    model_fingerprint,
    start_card,
    versions,
)
from kvfix.runs.folder import RunFolder
from kvfix.runs.resume import OtherRun, read_run

OLD = {"weights": "aa", "adapter": None, "dtype": "float32", "protocol": 1}
NEW = OLD | {"attn": "sdpa", "config": "c", "device": "cpu", "processor": "p"}
NEW |= {"adapter_settings": None}


def claim(folder: Path, fingerprint: dict[str, Any], **more: Any) -> RunFolder:
    return RunFolder(folder, kind="eval", command="kvfix eval", fingerprint=fingerprint, **more)


def test_the_same_adapter_weights_with_another_alpha_are_another_adapter(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    base, adapter = checkpoint("llava_onevision"), tmp_path / "adapter"
    adapter_folders.make(base, adapter)

    def found() -> dict[str, Any]:
        return model_fingerprint(load_mlm(str(base), adapter=str(adapter)), quant=None)

    before = found()
    adapter_folders.change_config(adapter, base_model_name_or_path=str(base), task_type=None)
    assert differences(before, found()) == []
    adapter_folders.change_config(adapter, lora_alpha=64)
    assert [d.partition(":")[0] for d in differences(before, found())] == ["adapter_settings"]


def test_everything_of_a_model_that_moves_a_score_is_in(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    def found(folder: Path, **how: Any) -> dict[str, Any]:
        return model_fingerprint(load_mlm(str(folder), dtype="float32", **how), quant=None)

    folder = checkpoint("llava_onevision")
    same = found(folder)
    assert same == found(folder) and json.dumps(same)
    assert same["attn"] == "sdpa" and same["device"] == "cpu"
    assert differences(same, found(folder, attn="sdpa")) == []  # asked for what is the default
    assert differences(same, found(folder, attn="eager")) == ["attn: then 'sdpa', now 'eager'"]
    bf16 = model_fingerprint(load_mlm(str(folder), dtype=torch.bfloat16), quant="nf4")
    assert [d.partition(":")[0] for d in differences(same, bf16)] == ["dtype", "quant"]
    for file, key, change in (
        ("chat_template.jinja", "processor", lambda text: text + "{# other #}"),
        (
            "processor_config.json",
            "processor",
            lambda text: text.replace('"resample": 3', '"resample": 2'),
        ),
        ("config.json", "config", lambda text: text.replace("{", '{"note": 1, ', 1)),
    ):
        other = tmp_path / file
        shutil.copytree(folder, other)
        (other / file).write_text(change((other / file).read_text()))
        assert [d.partition(":")[0] for d in differences(same, found(other))] == [key]
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    (other / "README.md").write_text("moves no score")
    (other / "trainer_state.json").write_text("{}")
    assert found(other) == same


def test_parts_with_attention_of_their_own_are_named() -> None:
    class Part:
        def __init__(self, attn: str):
            self._attn_implementation = attn

    class Config:
        text_config, vision_config = Part("flash_attention_2"), Part("sdpa")

    assert attention_of(Config()) == "language flash_attention_2, vision sdpa"
    Config.vision_config = Part("flash_attention_2")
    assert attention_of(Config()) == "flash_attention_2"


@pytest.mark.parametrize("key", ["attn", "config", "device", "processor", "weights", "protocol"])
def test_another_setting_is_refused_by_its_name(key: str, tmp_path: Path) -> None:
    claim(tmp_path, NEW)
    with pytest.raises(OtherRun) as error:
        claim(tmp_path, NEW | {key: "other"})
    assert f"{key}: then {NEW[key]!r}, now 'other'" in str(error.value)
    assert str(error.value).count(": then") == 1


def test_a_run_of_an_older_kvfix_is_refused_in_one_line(tmp_path: Path) -> None:
    claim(tmp_path, OLD).save(complete=True)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(OtherRun, match="begun by an older kvfix, which did not record attn, ") as e:
        claim(tmp_path, NEW)
    assert all(name in str(e.value) for name in LATER) and "None" not in str(e.value)
    assert (tmp_path / "run.json").read_bytes() == before and read_run(tmp_path)["complete"]
    with pytest.raises(OtherRun, match=r"weights: then 'aa', now 'bb'$"):  # what is surely other
        claim(tmp_path, NEW | {"weights": "bb"})


def test_other_versions_are_said_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    claim(tmp_path, NEW)
    claim(tmp_path, NEW)
    assert caplog.text == ""
    with monkeypatch.context() as other:
        now = versions()
        other.setattr(fp, "versions", lambda: now | {"torch": "2.0.0", "numpy": "1.0"})
        assert claim(tmp_path, NEW).resumed
    assert f"{tmp_path}: units of its starts were scored with numpy " in caplog.text
    assert f"; torch {versions()['torch']} and 2.0.0" in caplog.text
    starts = read_run(tmp_path)["starts"]
    assert [s["versions"]["torch"] for s in starts] == [versions()["torch"]] * 2 + ["2.0.0"]
    assert all(s["time"].startswith("20") and s["command"] == "kvfix eval" for s in starts)
    caplog.clear()
    claim(tmp_path, NEW)  # back again: units of the other version stay in the samples
    assert "2.0.0" in caplog.text and len(read_run(tmp_path)["starts"]) == 4


def test_another_processor_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    claim(tmp_path, NEW, host={"accelerator": None, "threads": 1})
    claim(tmp_path, NEW, host={"accelerator": None, "threads": 2})
    assert caplog.text == "" and read_run(tmp_path)["starts"][0]["host"]["processor"]
    claim(tmp_path, NEW, host={"accelerator": "H200", "threads": 2})
    assert "accelerator None and H200" in caplog.text


@pytest.mark.parametrize("starts", [None, [], "x", [1], [{}], [{"versions": 3, "host": []}]])
def test_starts_that_somebody_edited_stop_nothing(starts: Any, tmp_path: Path) -> None:
    claim(tmp_path, NEW).save(starts=starts, seconds=0, started=3)
    assert claim(tmp_path, NEW).resumed


def test_the_first_start_of_an_older_record_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    run = claim(tmp_path, NEW)
    del run.record["starts"]
    run.save(versions=versions() | {"torch": "1.0"})
    claim(tmp_path, NEW)
    assert "torch 1.0 and" in caplog.text
    assert [s["versions"]["torch"] for s in read_run(tmp_path)["starts"]] == [
        "1.0",
        versions()["torch"],
    ]


def test_cards_and_differences() -> None:
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": {}}) == {"a.b": 1, "a.c.d": 2}
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": None}) == ["a.b: then 1, now 2"]
    one = start_card("x", {})
    assert (
        mixed([one]) == [] and mixed([one, one]) == [] and {"kvfix", "torch"} <= versions().keys()
    )
