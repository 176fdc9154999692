"""Training data is looked at before the first step: pictures, and what a processor refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import trees

from kvfix.data.pictures import read as pictures
from kvfix.data.training.dataset import Conversations, read_conversations
from kvfix.data.training.verify import Bad, verify
from kvfix.launchers import free_port
from kvfix.recipes.train_surfacing import train
from kvfix.repair.lora import LoraOptions
from kvfix.repair.proof import Proof, collator_of
from kvfix.repair.train.recipe import Recipe

N = 40


def write(folder: Path, **changed: dict[str, Any]) -> Conversations:
    """Lines about one photo; some changed, by `line<number>`."""
    trees.photo(folder / "0.jpg", 40)
    rows = []
    for number in range(1, N + 1):
        asked = {"role": "user", "content": "<image>What is it?"}
        row = {"messages": [asked, {"role": "assistant", "content": "A cow."}], "images": ["0.jpg"]}
        rows.append(row | changed.get(f"line{number}", {}))
    path = folder / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_conversations(path)


def broken(folder: Path) -> None:
    """A photo that is cut off, and one too thin for any model."""
    trees.photo(folder / "cut.jpg", 0)
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    tiny.photo(2, 900).save(folder / "thin.png")


def test_every_picture_is_decoded_and_bad_ones_are_left_out(tmp_path) -> None:
    broken(tmp_path)
    lines = write(tmp_path, line3={"images": ["cut.jpg"]}, line9={"images": ["thin.png"]})
    assert len(lines) == N and not lines.bad  # headers are whole, files are there
    ticks: list[str] = []
    bad = verify(lines, tick=ticks.append)
    assert [b.at for b in bad] == [2, 8] and len(ticks) == N
    kept = lines.without(bad)
    assert len(kept) == N - 2 and [b.number for b in kept.bad] == [3, 9]
    assert "cut.jpg: expected a photo, found a broken file" in str(kept.bad[0])
    assert "thin.png: expected a photo whose sides differ at most" in str(kept.bad[1])
    assert kept[2].id == "#4" and kept[-1].id == f"#{N}"
    assert verify(lines, threads=1) == bad == verify(lines, threads=7)


def test_more_than_one_in_twenty_stops(tmp_path) -> None:
    broken(tmp_path)
    lines = write(tmp_path, **{f"line{i}": {"images": ["cut.jpg"]} for i in (1, 2, 3)})
    with pytest.raises(ValueError, match=r"at most 5% bad lines, found 3 of 40: line 1: .*cut"):
        lines.without(verify(lines))
    assert len(lines.without(verify(lines)[:2])) == N - 2


def test_a_file_that_many_name_is_decoded_once(tmp_path, monkeypatch) -> None:
    opened: list[Path] = []
    real = pictures.read_picture

    def watched(source: Path, **more: Any) -> pictures.Picture:
        opened.append(source)
        return real(source, **more)

    lines = write(tmp_path)
    monkeypatch.setattr("kvfix.data.training.photos.read_picture", watched)
    assert verify(lines, threads=1) == [] and opened == [tmp_path / "0.jpg"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_what_a_processor_refuses_is_found_without_weights(family, tmp_path, checkpoint) -> None:
    folder = checkpoint(family)
    collator = collator_of(str(folder))
    token = collator.processor.all_special_multimodal_tokens[0]
    turns = [{"role": "user", "content": f"What is {token}?"}]
    turns.append({"role": "assistant", "content": "A token."})
    lines = write(tmp_path, line7={"messages": turns, "images": []})
    if token == "<image>":  # of the data's own: the line itself is bad
        assert [b.number for b in lines.bad] == [7]
        return
    [bad] = verify(lines, look=Proof(collator))
    assert bad.at == 6 and f"without the placeholder {token!r}" in bad.why


def test_kinds_and_shapes_are_tried_once_each(tmp_path, checkpoint, monkeypatch) -> None:
    collator = collator_of(str(checkpoint("qwen2_5_vl")))
    tiny.photo(2, 200).save(tmp_path / "odd.png")
    tried: list[str] = []
    proof = Proof(collator)
    real = type(collator).__call__

    def watched(self: Any, examples: Any) -> Any:
        tried.append(examples[0].id)
        if examples[0].system:
            raise TypeError("no system")
        return real(self, examples)

    monkeypatch.setattr(type(collator), "__call__", watched)
    system = {"role": "system", "content": "Be brief."}
    turns = write(tmp_path)[0].messages
    said = [{"role": m.role, "content": m.content} for m in turns]
    lines = write(
        tmp_path,
        line4={"images": ["odd.png"]},
        line5={"images": ["odd.png"]},
        line6={"messages": [system, *said]},
        line8={"messages": [system, *said]},
        line9={"messages": [*said, {"role": "user", "content": "So?"}, said[1]]},
    )
    found = verify(lines, look=proof)
    assert [b.at for b in found] == [5, 7]  # every one that fails is tried; none that is proven
    assert all("takes, found one that it refuses: no system" in b.why for b in found)
    assert tried == ["#1", "#4", "#6", "#8", "#9"]


def test_a_shape_that_an_image_processor_refuses_is_left_out(tmp_path, checkpoint) -> None:
    """Of the processor itself, were it stricter than the rule for all models."""
    collator = collator_of(str(checkpoint("qwen2_5_vl")))
    tiny.photo(3, 300).save(tmp_path / "odd.png")
    lines = write(tmp_path, line4={"images": ["odd.png"]})
    assert verify(lines, look=Proof(collator)) == []
    real = collator.processor.image_processor

    class Strict:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def __call__(self, images: Any, **more: Any) -> Any:
            if any(max(i.size) >= 100 * min(i.size) for of in images for i in of):
                raise RuntimeError("aspect ratio")
            return real(images, **more)

    collator.processor.image_processor = Strict()
    [bad] = verify(lines, look=Proof(collator))
    assert bad == Bad(3, bad.why) and "refuses: aspect ratio" in bad.why


def test_a_training_leaves_bad_pictures_out_and_says_so(tmp_path, checkpoint, capfd) -> None:
    broken(tmp_path)
    lines = write(tmp_path, line3={"images": ["cut.jpg"], "source": "x"}, line4={"source": "y"})
    recipe = Recipe(
        model=str(checkpoint("llava_onevision")),
        data=lines.name,
        steps=2,
        batch=4,
        lora=LoraOptions(rank=4),
        threads=1,
        out=str(tmp_path / "out"),
    )
    train(recipe, command=["x"])
    data = json.loads((tmp_path / "out" / "training.json").read_text())["data"]
    assert (data["n"], data["forms"]) == (N - 1, {"LLaMA-Factory and ms-swift": N})
    [left_out] = data["left_out"]
    assert left_out.startswith("line 3: ") and "cut.jpg: expected a photo" in left_out
    assert data["notes"] == ["ignored: source (first in line 3)"]
    said = "".join(capfd.readouterr().err.split())
    assert "leftout:line3:" in said and f"{N}offormLLaMA-Factoryandms-swift" in said
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


RANK = """
import json, os, sys
from kvfix.ranks import agreed_apart
rank = int(os.environ["RANK"])
def make():
    assert rank == 0
    return [[3, "why"]]
def fails():
    assert rank == 0
    raise ValueError("x.jsonl: bad")
import torch.distributed as dist
found = [agreed_apart(make, rank, 2), agreed_apart(make, rank, 2)]
dist.init_process_group("gloo")
dist.barrier()
dist.destroy_process_group()
try:
    agreed_apart(fails, rank, 2)
except ValueError as error:
    found.append(str(error))
found.append(agreed_apart(make, rank, 2))
print(json.dumps(found))
sys.stdout.flush()
os._exit(0)  # rank 0 too, as soon as it may
"""


def test_ranks_agree_on_what_rank_0_found() -> None:
    port = free_port()
    same = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=os.environ | same | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    expected = [[[3, "why"]], [[3, "why"]], "x.jsonl: bad", [[3, "why"]]]
    assert [json.loads(text) for text in said] == [expected] * 2
