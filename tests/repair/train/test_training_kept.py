"""What a training keeps: whole checkpoints, the run folder's refusals, the record of its starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT
from safetensors.torch import load_file
from talks import write_talks
from trainings import COMMAND, at_step, contents, names, recipe, record, train, trained

from kvfix.repair.lora import LoraOptions, Rates
from kvfix.repair.terms.losses import Losses
from kvfix.repair.train.recipe import Recipe
from kvfix.repair.train.saves import newest_whole, rotate
from kvfix.runs.lock import LOCK, InUse, locked

PARTS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talks(tmp_path_factory.mktemp("data"), 16)


@pytest.fixture(scope="module")
def made(checkpoint, data, tmp_path_factory) -> Recipe:
    """Undisturbed, with checkpoints after steps 2, 4 and 6."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return recipe(checkpoint("llava"), data, out)


@pytest.fixture(scope="module")
def whole(made) -> Path:
    return train(made)


@pytest.fixture
def again(made, whole, tmp_path) -> Recipe:
    """A copy of the run that was killed after step 5, to go on with."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for name in ("checkpoint-6", *trained(out), "README.md"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / "training.json").write_text(json.dumps(record(out) | {"complete": False}))
    return replace(made, out=str(out), resume=True)


def damage(name: str, how: str) -> Callable[[Path], None]:
    def of(folder: Path) -> None:
        file = folder / name
        if how == "missing":
            file.unlink()
        elif how == "cut":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            bytes_ = bytearray(file.read_bytes())
            bytes_[len(bytes_) // 2] ^= 1
            file.write_bytes(bytes_)

    return of


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_a_checkpoint_with_one_wrong_file_does_not_count(how, whole, tmp_path) -> None:
    names = sorted(p.name for p in (whole / "checkpoint-4").iterdir())
    assert {*PARTS, "adapter_model.safetensors", "fingerprint.json", "manifest.json"} <= {*names}
    for name in names:
        out = tmp_path / name
        for step in (2, 4):
            shutil.copytree(whole / f"checkpoint-{step}", out / f"checkpoint-{step}")
        damage(name, how)(out / "checkpoint-4")
        found = newest_whole(out)
        if name == "manifest.json" and how != "missing" and found.last == out / "checkpoint-4":
            assert how == "cut"  # its last byte is a line's end
            continue
        assert found.last == out / "checkpoint-2", name
        [why] = found.torn.values()
        assert why.startswith(name) or name == "manifest.json"


@pytest.mark.parametrize("part", [None, "optimizer.pt", "rng_state.pth"])
def test_a_resumed_run_takes_the_newest_whole_one_and_ends_with_the_same_bytes(
    part, again, whole, capsys
) -> None:
    out = Path(again.out)
    if part is not None:
        damage(part, "missing")(out / "checkpoint-4")
    train(again)
    said = capsys.readouterr().err
    assert f"going on after step {4 if part is None else 2}" in said
    assert (f"checkpoint-4 does not count: {part} is missing" in said) == (part is not None)
    assert trained(out) == trained(whole)
    for step in (4, 6) if part else (6,):  # the torn one has been replaced
        both = [o / f"checkpoint-{step}" / "adapter_model.safetensors" for o in (out, whole)]
        assert both[0].read_bytes() == both[1].read_bytes()
    assert names(out) == names(whole) == [f"checkpoint-{n}" for n in (2, 4, 6)]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_nothing_whole_is_refused_with_the_reason(again) -> None:
    out = Path(again.out)
    for step in (2, 4):
        damage("scheduler.pt", "missing")(out / f"checkpoint-{step}")
    before = contents(out)
    with pytest.raises(ValueError, match=r"whole checkpoint .* found none \(checkpoint-4: sched"):
        train(again)
    shutil.rmtree(out / "checkpoint-2")
    shutil.rmtree(out / "checkpoint-4")
    with pytest.raises(ValueError, match="found none; leave out resume=true to begin anew"):
        train(again)
    assert {k: v for k, v in before.items() if "/" not in k} == contents(out)


def test_a_finished_run_says_so_and_stays_as_it_is(made, whole, capsys) -> None:
    before = contents(whole)
    train(replace(made, resume=True))
    assert "finished after step 6; nothing is left to do" in capsys.readouterr().err
    assert contents(whole) == before
    with pytest.raises(ValueError, match="expected an empty run folder, found another run"):
        train(made)
    assert contents(whole) == before


def test_a_kill_after_the_last_checkpoint_costs_nothing(again, whole) -> None:
    out = Path(again.out)
    shutil.copytree(whole / "checkpoint-6", out / "checkpoint-6")
    train(again)
    assert trained(out) == trained(whole) and record(out)["complete"]
    before = contents(out)
    train(again)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 1}, "seed: then 0, now 1"),
        ({"batch": 2}, "batch: then 4, now 2"),
        ({"accumulate": 2}, "accumulate: then 1, now 2"),
        ({"rates": Rates(lm=1e-2, heads=5e-3)}, "rates.lm: then 0.002, now 0.01"),
        ({"lora": LoraOptions(rank=2, alpha=1.0, dropout=0.1)}, "lora.alpha: then 32, now 1"),
        ({"lm": 0.5}, "lm: then 1, now 0.5"),
        ({"schedule": "cosine"}, "schedule: then 'linear', now 'cosine'"),
        ({"clip": 0.5, "warmup": 2}, "warmup: then 1, now 2; clip: then 1, now 0.5"),
        ({"steps": 5}, "steps: then 6, now 5"),
    ],
)
def test_another_setting_is_refused_by_its_name(changed, says, again) -> None:
    before = contents(Path(again.out))
    with pytest.raises(ValueError, match=f"something else: {says}; set what it had"):
        train(replace(again, **changed))
    assert contents(Path(again.out)) == before


def test_a_loss_of_another_weight_is_refused(again) -> None:
    losses = replace(Losses(), kl=replace(Losses().kl, weight=0.5))
    with pytest.raises(ValueError, match=r"losses\.kl\.weight: then 0, now 0\.5"):
        train(replace(again, losses=losses))


def test_other_data_and_another_base_model_are_refused(again, data, checkpoint, tmp_path) -> None:
    before = contents(Path(again.out))
    for name in ("word", "photo"):
        folder = tmp_path / name
        shutil.copytree(data.parent, folder)
        if name == "word":
            text = data.read_text()
            (folder / data.name).write_text(text.replace("Say a number", "Say a nuMber", 1))
        else:
            photo = sorted(folder.glob("*.png"))[0]
            photo.write_bytes(photo.read_bytes() + b" ")
        with pytest.raises(ValueError, match=r"data\.sha256: then [0-9a-f]{12}\.\.\., now"):
            train(replace(again, data=str(folder / data.name)))
    for name, field in (
        ("model.safetensors", "model.sha256"),
        ("chat_template.jinja", "processor.sha256"),
        ("config.json", "model.config"),
    ):
        model = tmp_path / name
        shutil.copytree(again.model, model)
        altered = bytearray((model / name).read_bytes())
        if name == "model.safetensors":
            altered[-1] ^= 1
        else:
            altered += b"{# #}" if "chat" in name else b" \n"
        (model / name).write_bytes(altered)
        with pytest.raises(ValueError, match=rf"{field}: then [0-9a-f]{{12}}\.\.\., now"):
            train(replace(again, model=str(model)))
    assert contents(Path(again.out)) == before
    moved = tmp_path / "moved"  # a folder of another name is the same model
    shutil.copytree(again.model, moved)
    train(replace(again, model=str(moved)))


def test_what_moves_no_weight_may_change_and_all_starts_are_kept(again, whole) -> None:
    free = {"log_every": 3, "save_every": 1, "keep": 1, "threads": 1, "save_minutes": 0.0}
    out = train(replace(again, **free))
    assert trained(out) == trained(whole) and names(out) == ["checkpoint-6"]
    then, now = record(out)["starts"]
    assert (then["from_step"], now["from_step"]) == (0, 4)
    assert then["started"] <= now["started"] and now["ended"] == "finished"
    assert all(s["command"] == " ".join(COMMAND) and s["versions"]["torch"] for s in (then, now))
    assert record(out)["seconds"] == pytest.approx(then["seconds"] + now["seconds"], abs=0.1)
    assert yaml.safe_load((out / "config.yaml").read_text())["log_every"] == 3


def test_more_steps_are_allowed_and_what_that_does_is_said(again, whole, capsys) -> None:
    out = train(replace(again, steps=8))
    said = " ".join(capsys.readouterr().err.split())
    assert "steps: then 6, now 8: from here on learning rates are those of 8 steps" in said
    assert trained(out) != trained(whole) and record(out)["steps"] == 8


def test_another_number_of_ranks_is_refused(again, monkeypatch) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="ranks: then 1, now 2"):
        train(again)


def test_the_config_is_on_disk_before_the_first_step(made, tmp_path, monkeypatch) -> None:
    out = tmp_path / "run"
    seen = {}
    at_step(monkeypatch, 1, lambda: seen.update(contents(out)))
    train(replace(made, out=str(out), steps=1, save_every=0))
    assert yaml.safe_load(seen["config.yaml"])["batch"] == 4
    begun = json.loads(seen["training.json"])
    assert not begun["complete"] and begun["starts"][0]["ended"] is None and LOCK in seen
    assert LOCK not in contents(out)


# --- the folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["README.md", "config.yaml", "log.jsonl", "notes/a.txt"])
def test_a_folder_with_other_files_is_refused_untouched(name, resume, made, tmp_path) -> None:
    out = tmp_path / "mine"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    before = contents(out), out.stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"other files \(|found none"):
        train(replace(made, out=str(out), resume=resume))
    assert (contents(out), out.stat().st_mtime_ns) == before


def test_the_root_the_checkout_and_a_file_are_refused(made, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(ROOT)
    for out in ("/", ".", "..", str(tmp_path / "file")):
        with pytest.raises(ValueError, match=r"other files \(|found a file"):
            train(replace(made, out=out))
    assert not (Path("/") / LOCK).exists() and not Path(LOCK).exists()


def test_a_run_that_fails_validation_leaves_everything_alone(again) -> None:
    before = contents(Path(again.out))
    losses = replace(Losses(), kl=replace(Losses().kl, weight=0.0))
    wrong = replace(losses, mask=replace(losses.mask, weight=1.0, layers=(99,)))
    for changed in (
        {"losses": wrong},
        {"model": "/nowhere"},
        {"data": "/nowhere.jsonl"},
        {"zero": "9"},
        {"report_to": "nothing"},
    ):
        with pytest.raises((ValueError, OSError)):
            train(replace(again, **changed))
        assert contents(Path(again.out)) == before
        fresh = Path(again.out).parent / "fresh"
        with pytest.raises((ValueError, OSError)):
            train(replace(again, resume=False, out=str(fresh), **changed))
        assert not fresh.exists() or not contents(fresh)


def test_a_start_that_ended_before_its_first_checkpoint_may_begin_anew(made, tmp_path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "training.json").write_text(json.dumps({"kind": "training", "starts": []}))
    (out / "log.jsonl").write_text("{}\n")
    (out / ".checkpoint-2.partial").mkdir()
    (out / ".checkpoint-2.partial" / "optimizer.pt").write_text("half")
    train(replace(made, out=str(out), steps=1, save_every=0))
    assert record(out)["complete"] and names(out) == []


def test_a_second_training_in_the_folder_is_refused_at_once(again) -> None:
    before = contents(Path(again.out))
    for resume in (True, False):
        with (
            locked(Path(again.out), command="the first"),
            pytest.raises(InUse, match=r"is being written by pid \d+ .*\(the first\)"),
        ):
            train(replace(again, resume=resume))
    assert contents(Path(again.out)) == before


# --- saving ---------------------------------------------------------------------------------------


def test_rotation_keeps_the_newest_and_drops_the_torn(tmp_path) -> None:
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(tmp_path / "checkpoint-8", keep=2, torn=[tmp_path / "checkpoint-6"])
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-8"]
    rotate(tmp_path / "checkpoint-8", keep=1)
    assert names(tmp_path) == ["checkpoint-8"]


def test_an_old_checkpoint_goes_only_when_the_new_one_is_whole(made, tmp_path, monkeypatch) -> None:
    out = tmp_path / "run"
    seen = []

    def rotating(newest: Path, **more: Any) -> None:
        seen.append((newest.name, newest_whole(out).last, names(out)))
        rotate(newest, **more)

    monkeypatch.setattr("kvfix.repair.train.trainer.rotate", rotating)
    train(replace(made, out=str(out), keep=1))
    assert [(name, last.name) for name, last, _ in seen if last] == [(n, n) for n, _, _ in seen]
    assert [there for _, _, there in seen][1] == [LOCK, "checkpoint-2", "checkpoint-4"]
    assert names(out) == ["checkpoint-6"]


@pytest.mark.parametrize("file", ["adapter", "optimizer.pt", "manifest.json"])
def test_a_full_disk_leaves_earlier_checkpoints_and_one_line(
    file, made, whole, tmp_path, monkeypatch
) -> None:
    """A limit on the size of files is a disk that fills up in the midst of one."""
    import resource

    out = tmp_path / "run"
    limit = {"adapter": 4096, "optimizer.pt": 20_000, "manifest.json": 0}[file]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        if file == "manifest.json":
            monkeypatch.setattr("kvfix.runs.atomic._write_manifest", full)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    def full(folder: Path) -> None:
        (folder / "manifest.json").write_text('{"files": {')
        raise OSError(28, "No space left on device")

    at_step(monkeypatch, 3, fill)
    try:
        with pytest.raises(ValueError, match=r"^after step 4: .*last checkpoint is .*point-2; go"):
            train(replace(made, out=str(out)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert names(out) == ["checkpoint-2"]
    train(replace(made, out=str(out), resume=True))
    assert trained(out) == trained(whole)


def test_checkpoints_by_the_clock(made, whole, tmp_path) -> None:
    out = tmp_path / "run"
    train(replace(made, out=str(out), save_every=0, save_minutes=1e-9))
    assert names(out) == [f"checkpoint-{n}" for n in (1, 2, 3, 4, 5, 6)]
    assert trained(out) == trained(whole)
    rare = train(replace(made, out=str(tmp_path / "rare"), save_every=0, save_minutes=60.0))
    assert names(rare) == []


def test_training_goes_on_from_an_adapter_of_another_run(made, whole, tmp_path) -> None:
    """Under rates and a schedule of its own: what is advised after a divergence."""
    start = whole / "checkpoint-2"
    new = replace(made, out=str(tmp_path / "run"), adapter=str(start), steps=1, rates=Rates(lm=0.0))
    out = train(new)
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (out, start))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert record(out)["fingerprint"]["adapter.sha256"]
    with pytest.raises(ValueError, match="keys to be this model's, found 36 unexp"):
        train(replace(new, out=str(tmp_path / "b"), lora=LoraOptions(rank=2, only=r".*v_proj")))
