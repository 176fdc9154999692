"""Every form of dump reads into the same predictions, and what is odd is named or handled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dump_files as files
import pytest
from dump_files import KEY, TEXTS, put
from hypothesis import given
from hypothesis import strategies as st

from kvfix.data.units import task_of
from kvfix.score.dumps.read import Dump, read_answers, read_dump
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
LETTERS = {i: a.strip("()") for i, a in KEY.items()}


def texts(dump: Dump) -> dict[str, str | None]:
    return {i: p.text for i, p in dump.predictions.items()}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(files.official, id="official"),
        pytest.param(
            lambda d: files.official(d, names=("Jar_Colour", "Two lid_match")), id="names"
        ),
        pytest.param(lambda d: put(d / "a.json", {"val": files.records()}), id="one file"),
        pytest.param(lambda d: put(d / "a.json", TEXTS), id="plain"),
        pytest.param(lambda d: put(d / "a.json", {"val": TEXTS}), id="plain in split"),
        pytest.param(lambda d: put(d / "a.json", files.records()), id="list"),
        pytest.param(files.lmms_eval, id="lmms-eval"),
        pytest.param(lambda d: files.lmms_eval(d, ids=False), id="lmms-eval by number"),
        pytest.param(lambda d: files.vlmevalkit(d / "a.csv"), id="csv"),
        pytest.param(lambda d: files.vlmevalkit(d / "a.tsv", ids=True), id="tsv with ids"),
    ],
)
def test_every_form_reads_into_the_same(make: Callable[[Path], Path], tmp_path: Path) -> None:
    made = make(tmp_path / "dump")
    for path in {made, tmp_path / "dump"}:
        dump = read_dump(path, LETTERS)
        assert texts(dump) == TEXTS
        assert dump.unknown == dump.disagreeing == () and dump.repeated == 0


def test_jsonl_of_records_with_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps(r) for r in files.records()) + "\n")
    assert texts(read_dump(path, LETTERS)) == TEXTS


def test_parsed_answers_and_options_come_along(tmp_path: Path) -> None:
    first, *_ = KEY
    path = put(tmp_path / "a.json", files.records(**{first: "(B) Jar B"}))
    assert read_dump(path, LETTERS).predictions[first].parsed == "(B) Jar B"
    plain = read_dump(put(tmp_path / "b.json", {first: "(B)"}), LETTERS).predictions[first]
    assert plain.text == plain.parsed == "(B)" and plain.options is None
    only = read_dump(put(tmp_path / "c.json", [{"idx": first, "prediction": "b"}]), LETTERS)
    assert only.predictions[first].text == only.predictions[first].parsed == "b"
    table = read_dump(files.vlmevalkit(tmp_path / "a.csv"), LETTERS).predictions[first]
    assert table.options == files.OPTIONS and table.parsed is None
    lmms = read_dump(files.lmms_eval(tmp_path / "lmms"), LETTERS).predictions[first]
    assert lmms.parsed == "(C)"


def test_lmms_eval_without_filtered_answers(tmp_path: Path) -> None:
    line = {
        "doc_id": 0,
        "target": "(A)",
        "resps": [["the red one"]],
        "doc": {"choices": ["a", "b"]},
    }
    path = tmp_path / "x_samples_blink_jar_colour.jsonl"
    path.write_text(json.dumps(line))
    [(name, found)] = read_dump(path, LETTERS).predictions.items()
    assert (name, found.text, found.options) == ("val_Jar_Colour_1", "the red one", ("a", "b"))


def test_byte_order_marks_and_windows_line_ends_are_no_obstacle(tmp_path: Path) -> None:
    path = files.vlmevalkit(tmp_path / "a.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert texts(read_dump(path, LETTERS)) == TEXTS
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(TEXTS, indent=1).replace("\n", "\r\n").encode())
    assert texts(read_dump(path, LETTERS)) == TEXTS
    key = tmp_path / "key.json"
    key.write_bytes(b"\xef\xbb\xbf" + json.dumps(KEY).encode())
    assert read_answers(key) == LETTERS


def test_task_names_may_be_spelt_with_spaces_hyphens_or_underscores(tmp_path: Path) -> None:
    spelt = {"val_Jar Colour_1": "A", "val_two_lid-match_3": "B", "val_Jar-Colour_2": "(B)"}
    found = texts(read_dump(put(tmp_path / "a.json", spelt), LETTERS))
    assert found == {"val_Jar_Colour_1": "A", "val_Two-lid_Match_3": "B", "val_Jar_Colour_2": "(B)"}
    both = {"val_X_Y_1": "A", "val_X-Y_1": "B"}  # a key that tells them apart is taken at its word
    assert texts(read_dump(put(tmp_path / "b.json", both), both)) == both
    dump = read_dump(put(tmp_path / "c.json", both | {"val_X Y_1": "C"}), both)
    assert texts(dump) == both and dump.unknown == ("val_X Y_1",)


def test_null_numbers_and_lists(tmp_path: Path) -> None:
    odd: dict[str, Any] = dict(
        zip(KEY, [None, 3, ["B"], ["A", "B"], {"a": 1}, "", True], strict=True)
    )
    found = texts(read_dump(put(tmp_path / "a.json", odd), LETTERS))
    assert list(found.values()) == [None, None, "B", None, None, "", None]


def test_unknown_questions_are_listed_and_left_out(tmp_path: Path) -> None:
    more = TEXTS | {"val_Jar_Colour_99": "A", "test_Jar_Colour_1": "B"}
    dump = read_dump(put(tmp_path / "a.json", more), LETTERS)
    assert dump.unknown == ("val_Jar_Colour_99", "test_Jar_Colour_1")
    assert texts(dump) == TEXTS


def test_a_dump_with_another_key_is_noticed(tmp_path: Path) -> None:
    first, second, *_ = KEY
    other = LETTERS | {first: "D", second: "D"}
    path = put(tmp_path / "a.json", {"val": files.records()})
    assert read_dump(path, other).disagreeing == (first, second)


def test_equal_copies_are_counted_and_different_ones_refused(tmp_path: Path) -> None:
    [record, *_] = files.records()
    path = put(tmp_path / "a.json", {"val": [record, record, *files.records()]})
    assert read_dump(path, LETTERS).repeated == 2
    path = put(tmp_path / "a.json", {"val": [record, record | {"full_prediction": "B"}]})
    with pytest.raises(ValueError, match=r"a\.json: record 2: .*one prediction for val_Jar_Colour_1"
                                         r".*another in .*record 1"):  # fmt: skip
        read_dump(path, LETTERS)
    for name in ("a", "b"):
        put(tmp_path / f"two/{name}.json", {"val_Jar_Colour_1": name})
    with pytest.raises(ValueError, match=r"b\.json.*another in .*a\.json"):
        read_dump(tmp_path / "two", LETTERS)
    path.write_text('{"val_Jar_Colour_1": "A", "val_Jar_Colour_1": "B"}')
    with pytest.raises(ValueError, match=r"expected 'val_Jar_Colour_1' once, found it again"):
        read_dump(path, LETTERS)


def test_order_is_trusted_only_as_far_as_the_answers_agree(tmp_path: Path) -> None:
    wrong = {"val_Jar_Colour_2": {"answer": "A"}}
    with pytest.raises(ValueError, match="expected the answer B of val_Jar_Colour_2"):
        read_dump(files.vlmevalkit(tmp_path / "a.csv", **wrong), LETTERS)
    moved = {"val_Jar_Colour_4": {"category": "Other"}}
    with pytest.raises(ValueError, match=r"expected 4 rows of task 'Jar_Colour'.*found 3"):
        read_dump(files.vlmevalkit(tmp_path / "a.csv", **moved), LETTERS)
    path = files.lmms_eval(tmp_path / "lmms", ids=False)
    [one, *_] = sorted(path.rglob("*jar*.jsonl"))
    one.write_text(one.read_text().replace('"doc_id": 0', '"doc_id": 17'))
    with pytest.raises(ValueError, match=r"one of the 4 questions.*'jar_colour', found number 18"):
        read_dump(path, LETTERS)
    one.write_text('{"doc_id": "x", "filtered_resps": ["A"]}')
    with pytest.raises(ValueError, match="line 1: expected doc_id, a number, found 'x'"):
        read_dump(path, LETTERS)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", "{", "a.json: expected JSON, found"),
        ("a.json", "[" * 100_000, "a.json: expected JSON, found"),
        ("a.json", "3", r"expected \{'val': \[...\]\} or \{idx: text\}, found 3"),
        ("a.json", "{}", "a.json: expected predictions, found none"),
        ("a.json", '{"val": []}', "a.json: expected predictions, found none"),
        ("a.json", '{"test": [{"idx": "test_A_1"}]}', "expected split 'val'.*found 'test'"),
        ("a.json", '{"macro": 0.5}', "a.json: macro: expected a question id such as val_Jar"),
        ("a.json", '{"val": [{"idx": "val_Jar_Colour_1"}]}', "record 1: .*found 'idx'"),
        ("a.json", '{"val": ["A"]}', "record 1: expected an object.*found 'A'"),
        ("a.json", '{"val": [{"idx": 7, "prediction": "A"}]}', "record 1: expected idx.*found 7"),
        (
            "a.json",
            '{"val_Other_1": "A"}',
            "such as 'val_Jar_Colour_1', found ids such as 'val_Oth",
        ),
        ("a.jsonl", '{"idx": "val_Jar_Colour_1", "prediction": "A"}\n{', "line 2: expected JSON"),
        ("a.jsonl", "[]", "a.jsonl: expected predictions, found none"),
        ("a.jsonl", "\n3", "line 2: expected an object .*found 3"),
        ("a.csv", "a,b\n1,2\n", "found no index and no prediction"),
        ("a.csv", "", "found no index and no prediction"),
        ("a.csv", "index,prediction\n,A\n", "row 2: expected a question id .*found ''"),
        ("a.csv", "index,prediction\n4,A\n", "0 questions that the answers have for task ''"),
        ("a.xlsx", "PK", r"a\.xlsx: expected a spreadsheet \.xlsx, found .*File is not a zip file"),
        ("a.xls", "PK", r"a\.xls: expected \.xlsx or csv, found an old spreadsheet"),
        ("a.pkl", "", "expected a file .json, .jsonl, .csv, .tsv or .xlsx, found '.pkl'"),
    ],
)
def test_what_is_no_dump_is_refused_in_one_line(
    name: str, text: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        read_dump(path, LETTERS)
    assert "\n" not in str(error.value)


def test_folders_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: expected predictions"):
        read_dump(tmp_path / "nowhere", LETTERS)
    with pytest.raises(ValueError, match=r"expected prediction files .*found none"):
        read_dump(tmp_path, LETTERS)
    for name in ("a.csv", "b.csv"):
        files.vlmevalkit(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected one prediction table, found a\.csv, b\.csv"):
        read_dump(tmp_path, LETTERS)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.json: expected UTF-8 or UTF-16 text"):
        read_dump(tmp_path / "a.json", LETTERS)


def test_what_makes_no_prediction_does_not_move_the_digest(tmp_path: Path) -> None:
    one = read_dump(files.official(tmp_path / "one"), LETTERS)
    two = read_dump(put(tmp_path / "a.json", {"val": files.records()}), LETTERS)
    assert one.sha256 == two.sha256 and len(one.files) == 2
    changed = files.records({**TEXTS, "val_Jar_Colour_1": "\ud800"})
    assert read_dump(put(tmp_path / "b.json", changed), LETTERS).sha256 != one.sha256


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "expected answers as .*found an empty list"),
        ("{}", "found an empty object"),
        ('{"val_A_1": "hidden"}', r"val_A_1: expected an answer \(A\) to \(E\), found 'hidden'"),
        ('{"val_A_1": 1}', "val_A_1: expected an answer .* found 1"),
        ('{"val_A_1": null}', "val_A_1: expected an answer .* found None"),
        ('{"val_A_1": "(A) red"}', "found '.A. red'"),
        ('{"first": "A"}', "expected a question id such as val_Art_Style_1, found 'first'"),
        ('{"val_A_1": "A", "val_A_1": "B"}', "'val_A_1' once"),
        ("nonsense", "key.json: expected JSON"),
    ],
)
def test_a_key_that_is_none_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_answers(path)


def test_tasks_are_read_off_the_ids() -> None:
    assert task_of("val_Multi-view_Reasoning_12") == "Multi-view_Reasoning"
    assert task_of("test_IQ_Test_1") == "IQ_Test"
    with pytest.raises(ValueError, match="found 'val_7'"):
        task_of("val_7")


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
