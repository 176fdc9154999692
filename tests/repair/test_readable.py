"""A photo that changes on disk while a training runs ends it with one line and a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from kvfix.recipes.train_surfacing import train
from kvfix.repair.lora import LoraOptions
from kvfix.repair.readable import Readable, Replaced, collate
from kvfix.repair.train.recipe import Recipe
from kvfix.repair.train.show import Monitor

STEPS, BROKEN_AT = 9, 3


class Some(list):
    """Examples of which some cannot be read."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if isinstance(found, Exception):
            raise found
        return found


def test_another_example_takes_the_place_and_says_why() -> None:
    examples = Readable(Some(["a", ValueError("b.png: broken"), OSError("c"), "d"]))
    assert examples[0] == "a" and examples[3] == "d" and len(examples) == 4
    assert examples[1] == Replaced("d", "b.png: broken")  # type: ignore[arg-type]
    assert Readable(Some(["a", ValueError("b")]))[1] == Replaced("a", "b")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="b"):
        Readable(Some([ValueError("b"), ValueError("c")]))[0]
    found = collate(lambda some: "".join(some))(["a", Replaced("d", "why")])  # type: ignore[arg-type,list-item,return-value]
    assert found == {"batch": "ad", "lost": ["why"]}


def lines(folder: Path) -> Path:
    rows = []
    for k in range(8):
        tiny.photo(60, 100, seed=k).save(folder / f"{k}.png")
        turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": f"{k}."}]
        rows.append({"messages": turns, "images": [f"{k}.png"]})
    path = folder / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_breaks_meanwhile_is_named_and_a_checkpoint_is_kept(
    workers, tmp_path, checkpoint, monkeypatch
) -> None:
    data = lines(tmp_path)
    whole = {p: p.read_bytes() for p in tmp_path.glob("*.png")}
    recipe = Recipe(
        model=str(checkpoint("llava_onevision")),
        data=str(data),
        steps=STEPS,
        batch=4,
        lora=LoraOptions(rank=4),
        log_every=1,
        threads=1,
        workers=workers,
        out=str(tmp_path / "out"),
    )
    line = Monitor.line

    def breaking(self: Monitor, logs: dict[str, Any]) -> None:
        line(self, logs)
        if logs["step"] == BROKEN_AT:
            for path in list(whole)[1:]:  # as long as before
                path.write_bytes(b"x" * len(whole[path]))

    monkeypatch.setattr(Monitor, "line", breaking)
    with pytest.raises(ValueError) as raised:
        train(recipe, command=["python", "x.py", f"out={recipe.out}"])
    text = str(raised.value)
    step = int(text.removeprefix("after step ").partition(":")[0])
    assert BROKEN_AT < step < STEPS  # batches are read ahead
    assert ".png: expected a photo, found " in text and "\n" not in text
    kept = Path(recipe.out) / f"checkpoint-{step}"
    assert f"the last checkpoint is {kept}; go on with: python x.py" in text and kept.is_dir()
    for path, content in whole.items():  # mended, it goes on
        path.write_bytes(content)
    monkeypatch.setattr(Monitor, "line", line)
    train(replace(recipe, resume=True), command=["python", "x.py"])
    assert (Path(recipe.out) / "adapter_model.safetensors").is_file()
