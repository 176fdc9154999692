"""The verdict: what a run shows clearly, what it cannot tell, and a command that runs."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from commands import call

from kvfix.report.verdict import LOSS, OPEN, WELL, Verdict, change_verdict, model_name, verdict
from kvfix.shipped import nano_dir

MODEL = {"id": "/nowhere/my model", "adapter": None}


def finding(name: str, value: float, *, clear: bool = True, n: int = 20) -> dict[str, Any]:
    about = {"task": "cosegmentation", "dataset": "scenes", "ci": [value - 0.1, value + 0.1]}
    return {"id": name, "value": value, "clear": clear, "n": n, **about}


def surfaced(*, clear: bool, n: int = 20) -> dict[str, Any]:
    shares = {"of_all": {"value": 0.5}, "shuffled": {"value": 0.1}}
    named = {"scoring": "generation", "subtask": "Visual_Similarity", "dataset": "scenes"}
    return {**named, **shares, "clear": clear, "n": n}


def of(*findings: dict[str, Any], surfacing: tuple[dict[str, Any], ...] = ()) -> Verdict:
    command = "kvfix diagnose --model '/nowhere/my model' --limit 8 --out=runs/a --json"
    run = {"kind": "diagnose", "command": command, "model": MODEL}
    return verdict({**run, "findings": list(findings), "surfacing": list(surfacing)}, [])


def tones(found: Verdict) -> list[str]:
    return [point.tone for point in found.points]


def test_a_clear_loss_names_its_place_and_its_task() -> None:
    found = of(finding("flow.late_loss", -0.3), finding("flow.projector", 0.1))
    assert tones(found) == [LOSS]
    assert "after the best layer in 1 of 1 task: most in cosegmentation" in found.points[0].text


def test_no_clear_loss_is_well_and_too_few_units_are_open() -> None:
    assert tones(of(finding("flow.late_loss", -0.3, clear=False))) == [WELL]
    assert tones(of(finding("flow.late_loss", -0.3, clear=False, n=4))) == [OPEN]


def test_what_goes_unsaid_stands_beside_luck() -> None:
    found = of(surfacing=(surfaced(clear=True),))
    assert tones(found) == [LOSS]
    assert "50 % of all 20 questions of visual similarity" in found.points[0].text
    assert "by luck, in 10 %" in found.points[0].text
    assert tones(of(surfacing=(surfaced(clear=False),))) == [WELL]
    assert tones(of(surfacing=(surfaced(clear=False, n=3),))) == [OPEN]


def test_keys_do_harm_only_where_blocking_them_helps() -> None:
    share = finding("keys.share", 0.03)
    assert tones(of(share)) == [OPEN]
    assert tones(of(share, finding("keys.block_text", 0.1))) == [LOSS]
    assert tones(of(finding("keys.share", 0.0, clear=False))) == [WELL]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (of(surfacing=(surfaced(clear=True),)), "kvfix repair 'model=/nowhere/my model'"),
        (
            of(finding("keys.share", 0.03), finding("keys.block_text", 0.1)),
            "kvfix repair --recipe artifacts 'model=/nowhere/my model'",
        ),
        (
            of(finding("flow.late_loss", -0.3, clear=False, n=4)),
            "kvfix diagnose --model '/nowhere/my model' --limit 64 --out runs/more",
        ),
    ],
)
def test_the_command_is_one_that_kvfix_takes(
    found: Verdict, words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found.command == words
    monkeypatch.chdir(tmp_path)
    ended = call(*shlex.split(words)[1:])
    assert ended.code == 1 and "/nowhere/my model" in ended.error  # 2 would be wrong usage


def test_the_command_goes_on_with_the_data_of_the_run() -> None:
    command = "kvfix diagnose --data 'blink=/my data/BLINK' --limit 24 --data=spair71k=/s"
    few = finding("flow.late_loss", -0.3, clear=False, n=4)
    run = {"kind": "diagnose", "command": command, "model": MODEL, "findings": [few]}
    words = shlex.split(verdict(run, []).command)
    assert words[2:5] == ["--data", "blink=/my data/BLINK", "--data=spair71k=/s"]
    assert words[5:] == ["--limit", "96", "--out", "runs/more"]
    torn = {**run, "command": "kvfix diagnose --data 'never closed"}
    assert "--data" not in verdict(torn, []).command


def test_a_comparison_goes_on_with_the_options_of_its_second_run() -> None:
    command = "kvfix eval --model m --quant nf4 --data blink=/d --profile official --out runs/b"
    after = {"model": {"id": "m"}, "command": command}
    asked = verdict_of_few({**after, "command": f"{command} --limit 8"})
    assert asked == f"{command.removesuffix(' --out runs/b')} --limit 64 --out runs/more"
    asked = verdict_of_few(after)  # all were asked: more of the same data are not to be had
    assert (
        asked
        == "kvfix eval --model m --quant nf4 --profile official --data NAME=DIR --out runs/more"
    )
    record = {"questions": [], "after": after}
    fell = {"clear": True, "value": -0.1}
    assert (
        change_verdict({**record, "probes": [fell]}).command
        == "kvfix diagnose --model m --quant nf4 --data blink=/d"
    )


def verdict_of_few(after: dict[str, Any]) -> str:
    return change_verdict({"questions": [], "probes": [], "after": after}).command


def test_the_shipped_model_needs_no_name_to_be_repaired() -> None:
    run = {
        "kind": "diagnose",
        "model": {"id": str(nano_dir())},
        "surfacing": [surfaced(clear=True)],
    }
    assert verdict(run, []).command == "kvfix repair"


def test_a_model_is_named_as_people_name_it() -> None:
    assert model_name({"id": "llava-hf/llava-1.5-7b-hf"}) == "llava-hf/llava-1.5-7b-hf"
    assert model_name({"id": "/a/b/nano", "adapter": "runs/x/adapter"}) == "nano + adapter"
    assert model_name({}) == "unnamed model"
