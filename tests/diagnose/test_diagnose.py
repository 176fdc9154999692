"""`kvfix diagnose` from the shell, on a tiny random model: what a user gets, whatever happens."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import trees
from commands import ENV, KVFIX, Finished, call, finish, launch, to_copy
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from kvfix.data.scenes.units import MAKERS
from kvfix.eval.probes.tasks import TASKS

FLOW = ("--only", "flow")
ONE_TASK = (*FLOW, "--task", "semantic_segmentation", "--limit", 2)
BARE = ("--no-control", *ONE_TASK)


@pytest.fixture(scope="session")
def model(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llava_onevision")


@pytest.fixture(scope="session")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run of the real command, shared by all that look at what a run leaves."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return finish(folder, "diagnose", "--model", model, *FLOW, "--limit", 2)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_the_record_has_the_format_of_the_design(finished: Finished, model: Path) -> None:
    run = finished.run
    assert json.loads(finished.ended.out) == run
    assert (run["kvfix"], run["kind"], run["seed"], run["complete"]) == (
        "0.1.0",
        "diagnose",
        0,
        True,
    )
    assert run["command"].startswith("kvfix diagnose --model") and run["seconds"] > 0
    assert run["started"][:2] == "20" and run["left_out"] == []
    card = run["model"]
    assert (card["id"], card["family"], card["dtype"]) == (str(model), "llava_onevision", "float32")
    assert len(card["sha256"]) == 64 and card["adapter"] is card["revision"] is None
    assert {"torch", "transformers", "peft"} <= run["versions"].keys()
    assert [d["task"] for d in run["data"]] == list(MAKERS)
    assert all((d["dataset"], d["split"], d["n"]) == ("scenes", "test", 2) for d in run["data"])


def test_every_site_of_every_task_has_a_result_with_n_and_interval(finished: Finished) -> None:
    places = {}
    for r in finished.run["results"]:
        places.setdefault((r["task"], r["control"]), []).append((r["site"], r["layer"]))
        low, high = r["ci"]
        assert low <= r["value"] <= high and (r["n"], r["clusters"], r["cluster"]) == (2, 2, "unit")
        assert 0 <= r["value"] <= 1 and r["metric"] == TASKS[r["task"]].metric
        assert r["head"] is None and 0 <= r["chance"] <= 1 and 0 < r["ceiling"] <= 1
    every = [(site, layer) for site in ("hidden", "key", "value") for layer in range(3)]
    for task in MAKERS:
        outside = [] if TASKS[task].by_text else [("vision", None), ("projector", None)]
        assert sorted(places[task, None], key=str) == sorted(
            [*outside, *every, ("position", None)], key=str
        )
        assert sorted(places[task, "random_weights"], key=str) == sorted(
            [*outside, *every[-3:]], key=str
        )


def test_every_task_has_findings_with_numbers(finished: Finished) -> None:
    ids = {(f["task"], f["id"]) for f in finished.run["findings"]}
    for task in MAKERS:
        assert {(task, "flow.peak"), (task, "flow.random_weights")} <= ids
        assert ((task, "flow.projector") in ids) is not TASKS[task].by_text
    assert all(f["text"].endswith(".") and f["n"] == 2 for f in finished.run["findings"])
    assert all(len(f["ci"]) == 2 for f in finished.run["findings"])


def test_results_are_the_means_of_the_samples(finished: Finished) -> None:
    for r in finished.run["results"]:
        name = r["task"] + (f".{r['control']}" if r["control"] else "") + ".jsonl"
        lines = (finished.folder / "samples" / name).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        same = [
            s["score"]
            for s in rows
            if all(s[k] == r[k] for k in ("site", "layer", "head", "control"))
        ]
        assert len(same) == 2 and sum(same) / 2 == pytest.approx(r["value"])


def test_a_person_gets_a_report_and_a_table(finished: Finished) -> None:
    folder, ended = finished.folder, finished.ended
    page = (folder / "report.html").read_text()
    assert "Temporal correspondence" in page or "temporal correspondence" in page
    assert (folder / "report.md").exists() and (folder / "figures/layer_curves.svg").exists()
    shown = {(o["task"], o["id"]) for o in finished.run["overlays"] if o["best"]}
    assert len(shown) == 2 * len(MAKERS)
    assert all((folder / o["file"]).is_file() for o in finished.run["overlays"])
    assert "correspondence" in ended.err and f"Report: {folder}/report.html" in ended.err
    assert "Traceback" not in ended.err
    tables = [line for line in ended.err.splitlines() if line.strip() and not to_copy(line)]
    shown = tables[next(i for i, line in enumerate(tables) if "dataset" in line) :]
    assert max(map(len, shown)) <= 100
    assert not list(folder.rglob("*.new"))


def test_killed_in_the_middle_a_run_resumes_to_the_same_numbers(
    finished: Finished, model: Path, tmp_path: Path
) -> None:
    words = ["diagnose", "--model", model, *FLOW, "--limit", 2, "--out", tmp_path / "run"]
    process = subprocess.Popen(
        [KVFIX, *map(str, words)], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    sample = tmp_path / "run/samples/semantic_segmentation.jsonl"  # the third task
    deadline = time.monotonic() + 600
    while not (sample.exists() and sample.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert read(tmp_path / "run")["complete"] is False
    with sample.open("a") as stream:  # and the disk kept half a line of the next unit
        stream.write('{"id": "test_semantic_1", "sc')
    before = [p.read_bytes() for p in sorted((tmp_path / "run/samples").iterdir())]
    assert len(before) < 12

    ended = launch(*words)
    assert ended.code == 0, ended.err
    run = read(tmp_path / "run")
    assert run["resumed"] is True and run["complete"] is True
    for part in ("results", "findings", "left_out", "overlays"):
        assert run[part] == finished.run[part], part
    for file in (finished.folder / "samples").iterdir():
        assert (tmp_path / "run/samples" / file.name).read_bytes() == file.read_bytes()


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A finished run that may be spoiled."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def test_other_weights_in_the_same_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    other = tiny.build("llava_onevision", tmp_path / "other", seed=1)
    before = (copy / "run.json").read_bytes()
    ended = call("diagnose", "--model", other, *FLOW, "--limit", 2, "--out", copy)
    assert ended.code == 1 and "holds another run; choose another --out" in ended.error
    assert "weights: then" in ended.error and "data" not in ended.error
    assert (copy / "run.json").read_bytes() == before


def test_a_folder_with_other_files_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    ended = call("diagnose", "--model", model, *BARE, "--out", tmp_path)
    assert ended.code == 1 and "found other files" in ended.error
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def without(folder: Path, name: str, to: Path) -> Path:
    shutil.copytree(folder, to)
    (to / name).unlink()
    return to


def test_models_that_cannot_be_diagnosed_get_one_clear_line(model: Path, tmp_path: Path) -> None:
    strange = Path(shutil.copytree(model, tmp_path / "strange"))
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "bagel"}))
    cut = Path(shutil.copytree(model, tmp_path / "cut"))
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    for folder, says in [
        (strange, "expected model_type to be one of gemma3, "),
        (without(model, "model.safetensors", tmp_path / "a"), "expected weights, found no model."),
        (without(model, "config.json", tmp_path / "b"), "expected a model with config.json"),
        (cut, "expected readable safetensors"),
        (tmp_path / "nowhere", "expected a folder or a hub id"),
    ]:
        ended = call("diagnose", "--model", folder, *BARE, "--out", tmp_path / "run")
        assert ended.code == 1 and says in ended.error and str(folder) in ended.error
        assert "Traceback" not in ended.err and ended.out == ""
    assert not (tmp_path / "run").exists()
    ended = call("diagnose", "--model", model, "--adapter", model, *BARE, "--out", tmp_path / "run")
    assert ended.code == 1 and "adapter_config.json" in ended.error


def test_a_reference_encoder_that_is_none_costs_no_run(model: Path, tmp_path: Path) -> None:
    words = ("diagnose", "--model", model, *BARE, "--out", tmp_path / "run")
    ended = call(*words, "--reference-encoder", model)
    assert ended.code == 1 and "expected model_type to be one of clip, " in ended.error
    assert not (tmp_path / "run").exists()


def davis(root: Path, clips: int, frames: int = 4) -> Path:
    return trees.davis(root, clips=tuple(f"clip{i}" for i in range(clips)), frames=frames)


def test_an_empty_dataset_is_said_to_be_empty(model: Path, tmp_path: Path) -> None:
    root = davis(tmp_path / "DAVIS", 1)
    (root / "ImageSets/2017/val.txt").write_text("\n")
    words = ("diagnose", "--model", model, *FLOW, "--out", tmp_path / "run")
    ended = call(*words, "--data", f"davis2017={root}")
    assert ended.code == 1 and "val.txt: expected one name a line, found an empty" in ended.error
    ended = call(*words, "--data", f"davis2017={tmp_path / 'nowhere'}")
    assert ended.code == 1 and "no such folder" in ended.error
    assert not (tmp_path / "run").exists()


def test_broken_files_leave_out_their_units_and_lose_nothing(model: Path, tmp_path: Path) -> None:
    root = davis(tmp_path / "DAVIS", 4)
    broken = root / "JPEGImages/480p/clip1/00001.jpg"
    broken.write_bytes(broken.read_bytes()[:400])  # a header, then nothing
    missing = root / "Annotations/480p/clip2/00001.png"
    missing.unlink()
    data = ("--data", f"davis2017={root}")
    words = ("diagnose", "--model", model, *FLOW, *data, "--out", tmp_path / "run")
    samples: dict[Path, int] = {}
    for start in range(2):  # the second start has nothing to compute and says the same
        ended = call(*words)
        files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/samples").iterdir()}
        assert files == (samples or files)
        samples = files
        assert ended.code == 1 and "2 of 4" in ended.error and "Traceback" not in ended.err
        run = read(tmp_path / "run")
        assert [entry["id"] for entry in run["left_out"]] == ["clip1", "clip2"]
        assert str(broken) in run["left_out"][0]["why"]
        assert str(missing) in run["left_out"][1]["why"]
        assert all(f"left out {e['id']}: {e['why']}" in ended.err for e in run["left_out"])
        assert run["results"] and all(r["n"] == 2 and r["ci"] for r in run["results"])
        assert {r["cluster"] for r in run["results"]} == {"sequence"}
        assert run["complete"] is True and run["resumed"] is bool(start)
        assert (
            len({o["id"] for o in run["overlays"]}) == 1 and (tmp_path / "run/report.html").exists()
        )


def test_a_dataset_of_broken_files_only_is_no_traceback(model: Path, tmp_path: Path) -> None:
    root = davis(tmp_path / "DAVIS", 2)
    for i in range(2):
        (root / f"JPEGImages/480p/clip{i}/00000.jpg").write_bytes(b"")
    data = ("--data", f"davis2017={root}")
    words = ("diagnose", "--model", model, *FLOW, *data, "--out", tmp_path / "run")
    ended = call(*words)
    assert ended.code == 1 and "2 of 2" in ended.error
    run = read(tmp_path / "run")
    assert run["results"] == run["findings"] == [] and len(run["left_out"]) == 2


def test_one_broken_unit_in_twenty_is_no_failure(model: Path, tmp_path: Path) -> None:
    root = davis(tmp_path / "DAVIS", 20, frames=3)
    (root / "JPEGImages/480p/clip7/00001.jpg").write_bytes(b"rubbish")
    data = ("--data", f"davis2017={root}")
    words = ("diagnose", "--model", model, *FLOW, *data, "--no-control")
    ended = call(*words, "--out", tmp_path / "run")
    assert ended.code == 0 and "left out clip7" in ended.err
    assert {r["n"] for r in read(tmp_path / "run")["results"]} == {19}


def test_heads_and_a_reference_encoder_add_their_sites(model: Path, tmp_path: Path) -> None:
    size = {"height": 48, "width": 48}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(image_size=48, patch_size=8, **small)).save_pretrained(tmp_path / "d")
    BitImageProcessor(size=size, do_center_crop=False).save_pretrained(tmp_path / "d")
    tasks = ("--task", "semantic_correspondence", "--task", "semantic_segmentation")
    words = ("diagnose", "--model", model, *FLOW, *tasks, "--limit", 2, "--out", tmp_path / "run")
    ended = call(*words, "--no-control", "--heads", "--reference-encoder", tmp_path / "d")
    assert ended.code == 0, ended.err
    run = read(tmp_path / "run")
    heads = [r for r in run["results"] if r["head"] is not None]
    assert {(r["task"], r["site"], r["layer"], r["head"]) for r in heads} == {
        (task, site, layer, head)
        for task in tasks[1::2]
        for site in ("key", "value")
        for layer in range(3)
        for head in range(2)
    }
    [reference] = [r for r in run["results"] if r["site"] == "reference"]
    assert reference["task"] == "semantic_correspondence"  # an encoder alone reads no text
    assert reference["control"] is None and reference["n"] == 2
    assert "flow.reference" in {f["id"] for f in run["findings"]}


@pytest.mark.parametrize("words", [("--dtype", "bfloat16"), ("--device", "auto")])
def test_the_control_takes_the_models_options(
    words: tuple[str, str], model: Path, tmp_path: Path
) -> None:
    ended = call("diagnose", "--model", model, *ONE_TASK, *words, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    run = read(tmp_path / "run")
    assert run["model"]["dtype"] == ("bfloat16" if words[0] == "--dtype" else "float32")
    assert "random_weights" in {r["control"] for r in run["results"]}
