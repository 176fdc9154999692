"""The experiment's own arithmetic: balanced letters, what is finished, lines that teach a form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "experiment"))

import run as experiment
from answer_form import KINDS, format_lines
from mixture import write_records
from plant_keys import batches, forward, plant
from run import RECIPES, Grid, Trial, check_settings, finished, scene_mix, searched
from samples import Answers, answers, readouts
from tables import (
    accuracy_table,
    balanced,
    difference,
    kinds_table,
    macro,
    one_letter,
    search_table,
    surfacing_table,
)

from kvfix.config import load_config
from kvfix.data.training.dataset import read_conversations
from kvfix.data.training.examples import conversation_examples
from kvfix.mlm.load import load_mlm
from kvfix.repair.train.recipe import Recipe
from kvfix.shipped import nano_dir


def said(letters: str, right: str, tasks: list[str]) -> Answers:
    hit_N = np.array([float(a == b) for a, b in zip(letters, right, strict=True)])
    ids = [str(i) for i in range(len(right))]
    four = [4] * len(ids)
    return Answers(ids, tasks, list(right), list(letters), four, hit_N, hit_N, np.ones(len(ids)))


def test_one_letter_for_all_scores_as_chance_does_however_the_right_ones_are_spread() -> None:
    of = said("AAAA" + "BBBBB", "AAAB" + "ABCDB", ["two"] * 4 + ["four"] * 5)
    assert macro(of.logprob_N, of.tasks, ["two", "four"]) == pytest.approx((3 / 4 + 2 / 5) / 2)
    assert balanced(of.logprob_N, of) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert one_letter(of) == 1.0


def test_right_answers_score_one_and_their_letters_are_counted() -> None:
    of = said("ABAAB", "ABAAB", ["a", "a", "b", "b", "b"])
    assert balanced(of.logprob_N, of) == 1.0
    assert one_letter(of) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_difference_is_of_the_mean_over_seeds_with_its_sign() -> None:
    before_N, tasks = np.zeros(40), ["a"] * 20 + ["b"] * 20
    after_SN = np.stack([np.ones(40), np.r_[np.ones(20), np.zeros(20)]])
    value, low, high = difference(before_N, after_SN, tasks, ["a", "b"])
    assert value == pytest.approx(0.75)  # 1 in kind a, 0.5 in kind b
    assert low == high == pytest.approx(0.75)  # all questions of a kind are alike
    assert difference(after_SN[0], 0 * after_SN, tasks, ["a"])[0] == -1


def test_lines_of_the_format_arm_are_read_and_only_one_option_is_right(tmp_path: Path) -> None:
    write_records(tmp_path / "lines.jsonl", format_lines(200))
    lines = read_conversations(tmp_path / "lines.jsonl")
    assert len(lines) == 200 and not lines.bad
    kind_of = {word: kind for kind, words in KINDS.items() for word in words.split()}
    assert sum(len(words.split()) for words in KINDS.values()) == len(
        kind_of
    )  # no word is two things
    right_letters = set()
    for example in conversation_examples(lines):
        question = example.question
        assert question is not None and not example.images
        asked = question.question.splitlines()[0].removeprefix("Which word names ").rstrip("?")
        fitting = [i for i, word in enumerate(question.choices) if kind_of[word] == asked]
        assert fitting == [question.answer]
        right_letters.add(question.letter)
    assert right_letters == {"(A)", "(B)", "(C)", "(D)"}


def test_only_tested_trials_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "RUNS", tmp_path)
    grid = Grid(families=("one",), arms=("lora", "readout"), seeds=(0, 1), rates=(3e-3,))

    def tested(trial: Trial, *, complete: bool) -> None:
        (trial.folder / "mcq").mkdir(parents=True)
        (trial.folder / "mcq" / "run.json").write_text(json.dumps({"complete": complete}))
        (trial.folder / "rest.json").write_text("{}")

    tested(Trial("one", "base"), complete=True)
    tested(Trial("one", "lora", 3e-3, 1), complete=True)
    tested(Trial("one", "readout", 3e-3, 0), complete=False)
    assert finished(grid) == [Trial("one", "base"), Trial("one", "lora", 3e-3, 1)]


def test_the_search_in_the_first_family_is_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "RUNS", tmp_path)
    grid = Grid(families=("one", "two"), arms=("lora",), seeds=(0,), rates=(1e-3, 3e-3))
    for family, rate in (("one", 1e-3), ("one", 3e-3), ("two", 1e-3), ("two", 3e-3)):
        trial = Trial(family, "lora", rate, 0)
        (trial.folder / "mcq").mkdir(parents=True)
        (trial.folder / "mcq" / "run.json").write_text('{"complete": true}')
        (trial.folder / "rest.json").write_text("{}")
    for rate, macro_val in ((1e-3, 0.5), (3e-3, 0.4)):
        assert finished(grid) == [] and searched("lora", grid) == {}
        (Trial("one", "lora", rate, 0).folder / "val.json").write_text(
            json.dumps({"macro": macro_val})
        )
    assert finished(grid) == [Trial("one", "lora", 1e-3, 0), Trial("two", "lora", 1e-3, 0)]
    assert list(search_table(grid))[2:] == ["| lora | 50.0 | 40.0 | 0.001 |"]


def samples(trial: Trial, name: str, *, first: str = "a") -> None:
    """Two questions of a kind that has no readout, one right, one with an unread answer."""
    folder = trial.folder / "mcq" / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"task": "Counting", "logprobs": [-1.0, -2.0, -3.0], "logprob_letter": "A"}
    rows = [
        {"id": first, "correct": 1, "logprob_correct": 1, "answer": "A", "unparsed": False},
        {"id": "b", "correct": 0, "logprob_correct": 0, "answer": "B", "unparsed": True},
    ]
    for row in rows:
        row |= {"cluster": row["id"], "letter": None if row["unparsed"] else "A"}
    lines = "".join(json.dumps(shared | row) + "\n" for row in rows)
    (folder / name).write_text(lines)


@pytest.mark.parametrize("name", ["mcq.jsonl", "mcq.blink.jsonl"])
def test_samples_of_scenes_and_of_other_data_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "RUNS", tmp_path)
    base, trial = Trial("one", "base"), Trial("one", "lora", 1e-3, 0)
    with pytest.raises(FileNotFoundError, match=r"expected mcq\.jsonl"):
        answers(base)
    samples(base, name)
    samples(trial, name)
    found = answers(trial, base, "scenes" if name == "mcq.jsonl" else "blink")
    assert found.ids == ["a", "b"] and found.options == [3, 3]
    assert found.logprob_N.tolist() == [1, 0] and found.read_N.tolist() == [1, 0]
    assert readouts(trial, base) == {}
    arms = {"base": [base], "lora": [trial]}
    table = list(accuracy_table(arms, mix=None))
    assert "held-out" not in table[0] and len(table) == 5
    assert table[2].startswith("| chance |  | 33.3 |") and table[4].startswith(
        "| lora | 1 | 50.0 |"
    )
    assert list(kinds_table(arms, mix=scene_mix()))[2] == "| Counting | 2 | 33.3 | 50.0 | 50.0 |"
    assert list(surfacing_table(arms)) == ["No kind of question here has a readout."]
    samples(trial, name, first="other")
    with pytest.raises(ValueError, match="expected the questions of"):
        answers(trial, base)


def test_trials_of_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "RUNS", tmp_path)
    check_settings("one", Grid(steps=5, seeds=(0,)))
    check_settings("one", Grid(steps=5, arms=("lora",)))
    with pytest.raises(ValueError, match="found others in steps, asked"):
        check_settings("one", Grid(steps=6, asked=("blink=DIR",)))


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected arms out of lora.*\['plain'\] and 1"):
        Grid(arms=("plain",), jobs=1)
    with pytest.raises(ValueError, match="one name in families"):
        Grid(own="pico")
    assert Grid(own="pico", families=("pico",), rates=(1e-3,)).model("pico") == "pico"


def test_the_first_row_of_keys_is_planted_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    mlm = load_mlm(str(nano_dir("llava_onevision")), dtype=torch.float32)
    layers = [mlm.n_layers - 2, mlm.n_layers - 1]
    batch = next(batches(mlm, 1))
    planted_N = torch.arange(batch.encoded.images[0][0].layout.index_HW.numel()) < 8
    with torch.no_grad():
        _, before_SHN = forward(mlm, batch, layers)
    plant(mlm, layers, steps=8)
    with torch.no_grad():
        _, after_SHN = forward(mlm, batch, layers)
    change_SHN = after_SHN / before_SHN
    assert change_SHN[..., planted_N].median() < 0.6 * change_SHN[..., ~planted_N].median()
    assert "median r of planted keys" in capsys.readouterr().out


def test_suppression_acts_on_the_layers_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(experiment, "RUNS", tmp_path)
    monkeypatch.setattr(experiment, "_run", lambda trial, what, command: commands.append(command))
    for arm in experiment.ARMS:
        experiment.train(Trial("nano", arm, 1e-3), Grid(late=(2, 6)))
    for arm, command in zip(experiment.ARMS, commands, strict=True):
        config = load_config(Recipe, Path(command[command.index("--config") + 1]), command[4:])
        assert config.losses.needs().agnostic == (arm in ("suppression", "both"))
        assert config.losses.dependence.layers == config.losses.mass.layers == (2, 6)


def test_no_kind_of_question_is_more_than_three_tenths_of_what_nanos_learn() -> None:
    grid = load_config(Grid, RECIPES / "experiment" / "nano.yaml")
    mix = scene_mix(grid.recipe)
    questions = mix.round.count("question") / len(mix.round)
    for kind in mix.asked:
        assert questions * mix.asked.count(kind) / len(mix.asked) <= 0.3
    assert len(mix.held_out) == 2 and len(grid.rates) >= 3


def test_models_of_a_folder_stand_in_for_the_shipped_ones() -> None:
    assert Grid(models="made").model("qwen2_5_vl") == "made/qwen2_5_vl"
    assert Grid().model("qwen2_5_vl") == str(nano_dir("qwen2_5_vl"))
