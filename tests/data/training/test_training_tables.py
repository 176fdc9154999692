"""Tables of datasets as training data, from a folder or the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from training_rows import ANSWER, ASKED, LLAVA, PARTS, PROMPT, encoded, said

from kvfix.data.training.dataset import read_conversations


@pytest.fixture
def tables(folder: Path) -> dict[str, Callable[[], Path]]:
    """Ways in which a table of `datasets` lies on disk."""
    from datasets import Dataset, DatasetDict, Image, List

    rows = [PARTS | {"images": [{"bytes": encoded(k), "path": None}]} for k in range(3)]
    made = Dataset.from_list(rows).cast_column("images", List(Image()))

    def parquet() -> Path:
        (folder / "data").mkdir()
        made.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        made.select([0]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
        return folder / "data"

    def saved() -> Path:
        made.save_to_disk(folder / "saved")
        return folder / "saved"

    def split() -> Path:
        DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(folder / "split")
        return folder / "split"

    def file() -> Path:
        made.to_parquet(folder / "x.parquet")
        return folder / "x.parquet"

    return {"parquet": parquet, "saved": saved, "split": split, "file": file}


@pytest.mark.parametrize("way", ["parquet", "saved", "split", "file"])
def test_tables_of_datasets_are_read(tables, way) -> None:
    data = read_conversations(tables[way]())
    assert len(data) == 3 and data.forms == (("TRL", 3),) and data.ids == ("#1", "#2", "#3")
    images = [c.photos[0].read().image for c in data]
    assert [i.getpixel((0, 0)) for i in images] == [
        (0,) * 3,
        (40,) * 3,
        (80,) * 3,
    ]
    assert said(data[2]) == [("user", ASKED), ("assistant", ANSWER)]


def test_tables_may_hold_turns_as_json_and_one_image(folder) -> None:
    from datasets import Dataset, Image

    row = {"conversations": json.dumps(LLAVA["conversations"]), "image": {"bytes": encoded()}}
    Dataset.from_list([row]).cast_column("image", Image()).to_parquet(folder / "x.parquet")
    [got] = read_conversations(folder / "x.parquet")
    assert said(got) == [("user", ASKED), ("assistant", ANSWER)] and len(got.photos) == 1


def test_a_hub_dataset_that_is_not_there_is_refused(monkeypatch) -> None:
    import datasets

    def missing(name: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"{name} doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(FileNotFoundError, match=r"user/none: expected a file, .* doesn't exist"):
        read_conversations("user/none")


def test_a_hub_dataset_gives_its_train_split(monkeypatch) -> None:
    import datasets

    made = datasets.Dataset.from_list([PROMPT | {"images": None}] * 2)
    splits = datasets.DatasetDict({"train": made, "test": made.select([0])})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    assert len(read_conversations("user/some")) == 2
    other = datasets.DatasetDict({"a": made, "b": made})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: other)
    with pytest.raises(ValueError, match="a split called train, found a, b"):
        read_conversations("user/some")


def test_a_broken_table_is_named(folder) -> None:
    (folder / "x.parquet").write_bytes(b"PAR1" + b"x" * 50)
    with pytest.raises(ValueError, match=r"x\.parquet: expected a parquet or Arrow file"):
        read_conversations(folder / "x.parquet")
