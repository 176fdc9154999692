"""The recipes as pages, and as commands of an installed kvfix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import call
from places import ROOT
from talks import write_talks

from kvfix.recipes import train_artifacts, train_surfacing
from kvfix.repair.train.launch import typed
from kvfix.repair.train.recipe import read_recipe
from kvfix.shipped import default_out, presets_dir

PAGES = ("train_surfacing", "train_artifacts", "repair")
LONGEST = 150  # lines


@pytest.mark.parametrize("name", PAGES)
def test_a_recipe_is_a_page_that_opens_with_how_it_is_launched(name: str) -> None:
    page = (ROOT / "recipes" / f"{name}.py").read_text()
    top = page.split('"""')[1]
    assert len(page.splitlines()) < LONGEST
    assert f"    python recipes/{name}.py" in top and "    kvfix " in top and "minutes" in top


@pytest.mark.parametrize("page", [train_surfacing, train_artifacts])
def test_the_mix_of_scenes_stands_in_the_yaml(page: Any) -> None:
    mix = read_recipe(Path(page.__file__), None, ()).scenes
    assert mix.round == ("question",) * 9 + ("talk", "named", "pair")
    assert mix.asked.count("Visual_Similarity") == 12 and len(mix.asked) == 18
    assert set(mix.held_out) == {"Semantic_Correspondence", "Relative_Depth"}


def test_a_config_is_a_path_or_the_name_of_one_beside_the_page(tmp_path: Path) -> None:
    page = Path(train_surfacing.__file__)
    assert read_recipe(page, "train_surfacing_7b.yaml", ["steps=7"]).steps == 7
    own = tmp_path / "train_surfacing_7b.yaml"
    own.write_text("steps: 5\n")
    assert read_recipe(page, str(own), ()).steps == 5
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
        read_recipe(page, "gone.yaml", ())


def test_a_checkout_keeps_its_runs_and_its_presets() -> None:
    assert default_out("x").resolve() == ROOT / "checkpoints" / "x"
    assert presets_dir().resolve() == ROOT / "recipes" / "deepspeed"


def test_kvfix_train_is_the_page(checkpoint: Any, tmp_path: Path) -> None:
    data, out = write_talks(tmp_path / "data", 4), tmp_path / "out"
    settings = ["steps=1", "batch=2", "lora.rank=2", "losses.kl.weight=0.1", f"data={data}"]
    config = tmp_path / "own.yaml"
    config.write_text(f"model: {checkpoint('llava')}\nout: {out}\n")
    ended = call("train", "surfacing", *settings, "--config", str(config))
    assert ended.code == 0, ended.err
    record = json.loads((out / "training.json").read_text())
    assert record["complete"] and record["command"].startswith("kvfix train surfacing steps=1 ")
    again = call("train", "surfacing", *settings, "--config", str(config))
    assert again.code == 1 and "set resume=true to go on with it" in again.error
    assert call("train", "surfacing", "stepps=1").code == 1


@pytest.mark.parametrize(
    ("variables", "front"),
    [
        ({}, "kvfix train"),
        (
            {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
            "torchrun --nproc_per_node 2 --no-python kvfix train",
        ),
        (
            {"LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            "deepspeed --num_accelerators 2 --no_python --no_local_rank kvfix train",
        ),
    ],
)
def test_the_command_that_is_advised_is_one_that_starts(variables: Any, front: str) -> None:
    assert " ".join(typed(["kvfix", "train"], variables)) == front
