"""Every form of dump reads into the same predictions, and what is odd is named or handled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dump_files as files
import pytest
from dump_files import KEY, TEXTS, put
from dump_texts import LETTERS, texts

from kvfix.data.units import task_of
from kvfix.score.dumps.read import read_answers, read_dump


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
