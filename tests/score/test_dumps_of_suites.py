"""Answers as evaluation suites write them: columns, sheets, reruns, work folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dump_files as files
import pytest
from dump_files import KEY, TEXTS, put
from dump_texts import LETTERS, texts
from hypothesis import given
from hypothesis import strategies as st

from kvfix.score.dumps.read import read_dump
from kvfix.score.dumps.rows import IDS
from kvfix.score.dumps.rows import TEXTS as TEXT_KEYS

NAMES = (
    *IDS,
    *TEXT_KEYS,
    "val",
    "answer",
    "category",
    "A",
    "choices",
    "resps",
    "doc_id",
    "blink_acc",
)
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 9), st.floats(), st.text(max_size=5)),
    st.sampled_from((*KEY, *"AB", "(B)", "Jar Colour")),
)
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.sampled_from((*NAMES, *KEY)), v),
    max_leaves=20,
)


def vlmevalkit_records() -> list[dict[str, Any]]:
    """As VLMEvalKit writes them under PRED_FORMAT=json, in the key's order."""
    return [
        {"index": n, "question": "q", "A": "red", "B": "green", "C": None, "D": float("nan")}
        | {"answer": KEY[i].strip("()"), "category": i.split("_", 1)[1].rpartition("_")[0]}
        | {"split": None, "prediction": TEXTS[i]}
        for n, i in enumerate(KEY)
    ]


def as_columns(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """As pandas writes a table by default."""
    return {k: {str(n): r[k] for n, r in enumerate(records)} for k in records[0]}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda d: put(d / "m_BLINK.json", vlmevalkit_records()), id="vlmevalkit json"),
        pytest.param(lambda d: put(d / "a.json", as_columns(vlmevalkit_records())), id="columns"),
        pytest.param(lambda d: put(d / "a.json", {"results": files.records()}), id="wrapped"),
        pytest.param(
            lambda d: put(d / "a.json", {r["idx"]: r for r in files.records()}), id="records by id"
        ),
        pytest.param(
            lambda d: put(d / "a.json", [{"id": i, "response": t} for i, t in TEXTS.items()]),
            id="id and response",
        ),
        pytest.param(
            lambda d: put(
                d / "a.json",
                [{"id": i, "answer": t, "ground_truth": KEY[i]} for i, t in TEXTS.items()],
            ),
            id="answer beside ground truth",
        ),
    ],
)
def test_records_as_other_tools_write_them(make: Callable[[Path], Path], tmp_path: Path) -> None:
    dump = read_dump(make(tmp_path), LETTERS)
    assert texts(dump) == TEXTS and dump.disagreeing == () and dump.notes == ()


def test_an_answer_alone_is_the_right_one_and_no_prediction(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", [{"idx": i, "answer": a} for i, a in KEY.items()])
    with pytest.raises(ValueError, match=r"full_prediction or prediction .*found 'idx', 'answer'"):
        read_dump(path, LETTERS)


def test_lines_under_the_name_of_json_and_a_list_under_that_of_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n".join(json.dumps(r) for r in files.records()))
    assert texts(read_dump(tmp_path / "a.json", LETTERS)) == TEXTS
    put(tmp_path / "b.jsonl", files.records())
    assert texts(read_dump(tmp_path / "b.jsonl", LETTERS)) == TEXTS
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(r) for r in vlmevalkit_records()))
    assert texts(read_dump(tmp_path / "c.jsonl", LETTERS)) == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encodings_and_separators(encoding: str, delimiter: str, tmp_path: Path) -> None:
    made = files.vlmevalkit(tmp_path / "a.tsv").read_text()
    path = tmp_path / "b.csv"
    path.write_bytes(made.replace("\t", delimiter).encode(encoding))
    assert texts(read_dump(path, LETTERS)) == TEXTS
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(TEXTS).encode(encoding))
    assert texts(read_dump(path, LETTERS)) == TEXTS


@pytest.mark.parametrize("wrap", [list, lambda said: [said]])
def test_of_repeated_answers_the_first_is_scored_and_said(
    wrap: Callable[[list[str]], Any], tmp_path: Path
) -> None:
    lines = [
        {
            "doc_id": n,
            "filtered_resps": wrap([t, "(D)"]),
            "blink_acc": {"id": i, "pred_parsed": "C"},
        }
        for n, (i, t) in enumerate(TEXTS.items())
    ]
    path = tmp_path / "20260101_101010_samples_blink_jars.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    dump = read_dump(tmp_path, LETTERS)
    assert texts(dump) == TEXTS
    assert dump.notes == (
        "7 questions have several answers each (repeats): the first is scored, as lmms-eval does",
    )


def test_of_reruns_the_newest_is_scored_and_said(tmp_path: Path) -> None:
    folder = files.lmms_eval(tmp_path) / "model__x"
    for file in list(folder.glob("20250102_*_samples_*.jsonl")):
        old = file.read_text().replace("(A)", "(B)")
        (folder / file.name.replace("20250102", "20241231")).write_text(old)
    (folder / "20260101_000000_samples_mmmu_val.jsonl").write_text('{"doc_id": 0}')
    dump = read_dump(tmp_path, LETTERS)
    assert texts(dump) == TEXTS and all("20250102" in f.name for f in dump.files)
    [note] = dump.notes
    assert note == "reruns: 2 tasks' newest samples are scored, 2 older files are not"


def test_a_work_folder_of_vlmevalkit(tmp_path: Path) -> None:
    """Tables of two benchmarks, of each the scores and a judged copy, and two runs."""
    old, new = tmp_path / "T20250101_Gaaaa", tmp_path / "T20260101_Gbbbb"
    for folder in (old, new):
        files.vlmevalkit(folder / "model_BLINK.tsv")
        files.vlmevalkit(folder / "model_MMBench_DEV_EN.tsv")
        for name in ("model_BLINK_acc.csv", "model_BLINK_exact_matching_result.tsv", "status.json"):
            (folder / name).write_text("split,Overall\nval,0.5\n")
    (old / "model_BLINK.tsv").write_text("index\tprediction\n")
    dump = read_dump(tmp_path, LETTERS)
    assert texts(dump) == TEXTS and dump.files == (new / "model_BLINK.tsv",)
    assert dump.notes == ("of 2 runs the newest is scored: T20260101_Gbbbb",)
    top = tmp_path / "model_BLINK.tsv"
    top.symlink_to(new / "model_BLINK.tsv")
    (tmp_path / "~$model_BLINK.xlsx").write_text("lock")
    assert read_dump(tmp_path, LETTERS).files == (top,)
    put(tmp_path / "model_BLINK.json", vlmevalkit_records())
    dump = read_dump(tmp_path, LETTERS)
    assert dump.files == (tmp_path / "model_BLINK.json",)
    assert dump.notes == ("beside model_BLINK.json, not read: model_BLINK.tsv",)


@pytest.mark.parametrize("make", [files.official, files.lmms_eval])
def test_a_folder_of_several_models_is_named_as_such(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    make(tmp_path / "all" / "model_1")
    assert texts(read_dump(tmp_path / "all", LETTERS)) == TEXTS
    for n in (2, 3):
        make(tmp_path / "all" / f"model_{n}")
    with pytest.raises(
        ValueError, match=r"all: expected one model's results, found 3: model_1.*, model_2.*; name"
    ):
        read_dump(tmp_path / "all", LETTERS)


def test_a_file_that_a_suite_derived_is_read_where_it_is_all_there_is(tmp_path: Path) -> None:
    files.vlmevalkit(tmp_path / "model_BLINK_result.tsv")
    assert texts(read_dump(tmp_path, LETTERS)) == TEXTS


@given(value=VALUES, more=VALUES, lines=st.booleans())
def test_whatever_json_holds_it_is_read_or_refused_in_one_line(
    value: Any, more: Any, lines: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("d") / ("a.jsonl" if lines else "a.json")
    path.write_text("\n".join(map(json.dumps, (value, more))) if lines else json.dumps(value))
    try:
        read_dump(path, LETTERS)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
