"""Spreadsheets as openpyxl and XlsxWriter lay them out, part by part."""

from __future__ import annotations

import csv
import tracemalloc
import zipfile
from pathlib import Path

import dump_files as files
import openpyxl
import pytest

from kvfix.score.dumps.read import read_answers, read_dump
from kvfix.score.dumps.spreadsheet import read_sheet

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
RELATIONS = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
TYPE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet"
TYPES = "application/vnd.openxmlformats-officedocument.spreadsheetml."
PARTS = {
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/'
    f'content-types"><Override PartName="/xl/workbook.xml" ContentType="{TYPES}sheet.main+xml"/>'
    f'<Override PartName="/xl/sharedStrings.xml" ContentType="{TYPES}sharedStrings+xml"/></Types>',
    "xl/workbook.xml": f'<workbook {MAIN} xmlns:r="http://schemas.openxmlformats.org/'
    'officeDocument/2006/relationships"><sheets><sheet name="a" sheetId="7" r:id="rId3"/>'
    '<sheet name="b" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f"<Relationships {RELATIONS}>"
    f'<Relationship Id="rId1" Type="{TYPE}" Target="worksheets/sheet1.xml"/>'
    f'<Relationship Id="rId3" Type="{TYPE}" Target="/xl/worksheets/sheet2.xml"/></Relationships>',
    "xl/worksheets/sheet1.xml": f"<worksheet {MAIN}><sheetData/></worksheet>",
}


def book(path: Path, cells: str, texts: str = "", **more: str) -> Path:
    """An .xlsx file whose first sheet has these rows."""
    parts = PARTS | {
        "xl/worksheets/sheet2.xml": f"<worksheet {MAIN}><sheetData>{cells}</sheetData></worksheet>",
        "xl/sharedStrings.xml": f"<sst {MAIN}>{texts}</sst>",
    }
    with zipfile.ZipFile(path, "w") as whole:
        for name, text in (parts | more).items():
            whole.writestr(name, text)
    return path


def test_every_kind_of_cell(tmp_path: Path) -> None:
    texts = (
        "<si><t>index</t></si><si><t>A</t></si><si><t>prediction</t></si>"
        "<si><r><t>re</t></r><r><rPr><b/></rPr><t>d &amp; b</t></r>"
        "<rPh sb='0' eb='1'><t>no</t></rPh></si>"
    )
    head = '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c>'
    head += '<c r="AA1" t="s"><v>2</v></c></row>'
    rows = (
        '<row r="2"><c r="A2"><v>4</v></c><c r="AA2" t="inlineStr"><is><t>x_x000B_y</t></is></c>'
        '<c r="AB2"><v>9</v></c></row>'
        '<row r="3"/>'
        '<row r="4"><c r="A4"><v>5.5</v></c><c r="B4" t="s"><v>3</v></c>'
        '<c r="AA4" t="str"><f>1+1</f><v>2</v></c></row>'
        '<row><c t="b"><v>1</v></c><c t="e"><v>#N/A</v></c></row>'
    )
    found = read_sheet(book(tmp_path / "a.xlsx", head + rows, texts))
    assert found == [
        {"index": "4", "A": "", "prediction": "x\x0by"},
        {"index": "5.5", "A": "red & b", "prediction": "2"},
        {"index": "1", "A": "", "prediction": ""},
    ]
    assert read_sheet(book(tmp_path / "empty.xlsx", "")) == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"xl/workbook.xml": "<workbook"}, "expected a spreadsheet .xlsx"),
        ({"xl/workbook.xml": f"<workbook {MAIN}/>"}, "expected a spreadsheet .xlsx"),
        ({"xl/_rels/workbook.xml.rels": f"<Relationships {RELATIONS}/>"}, "cannot be read"),
        (
            {"xl/sharedStrings.xml": "<!DOCTYPE sst [<!ENTITY a 'aaaa'>]><sst>&a;</sst>"},
            "cannot be read: EntitiesForbidden",
        ),
    ],
)
def test_what_is_no_spreadsheet_is_refused(tmp_path: Path, more: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says) as told:
        read_sheet(book(tmp_path / "a.xlsx", "", **more))
    assert str(told.value).startswith(str(tmp_path / "a.xlsx"))


def test_an_index_beyond_the_shared_texts_is_refused(tmp_path: Path) -> None:
    cells = '<row r="1"><c r="A1" t="s"><v>3</v></c></row>'
    with pytest.raises(ValueError, match=r"expected a spreadsheet \.xlsx"):
        read_sheet(book(tmp_path / "a.xlsx", cells))


def test_parts_that_would_fill_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = book(tmp_path / "a.xlsx", "<row><c/><c/></row>" * 3)
    for name, bound, says in (
        ("LARGEST", 20, "at most 20 bytes of unpacked parts"),
        ("MOST_TAGS", 9, r"at most 9 tags in xl/worksheets/sheet2\.xml, found \d+"),
        ("MOST_ROWS", 2, "at most 2 rows"),
        ("MOST_CELLS", 5, "and 5 cells"),
    ):
        with monkeypatch.context() as bounded, pytest.raises(ValueError, match=says):
            bounded.setattr(f"kvfix.score.dumps.spreadsheet.{name}", bound)
            read_sheet(small)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """240 MB of empty cells took 5.8 GB of memory."""
    path = book(tmp_path / "a.xlsx", "")
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as whole,
        whole.open("xl/worksheets/sheet3.xml", "w") as stream,
    ):
        for _ in range(60):
            stream.write(b"<c/>" * 2**18)
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"sheet3\.xml to unpack into at most 200 times its size"):
        read_sheet(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16 * 2**20


def test_what_a_sheet_says_of_its_own_size_is_not_believed(tmp_path: Path) -> None:
    head = '<row r="1"><c t="inlineStr"><is><t>a</t></is></c></row>'
    path = book(tmp_path / "a.xlsx", head + '<row r="3"><c><v>1</v></c></row>')
    sheet = "xl/worksheets/sheet2.xml"
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name).decode() for name in whole.namelist()}
    parts[sheet] = parts[sheet].replace("<sheetData>", '<dimension ref="A1:A1"/><sheetData>')
    assert read_sheet(book(path, "", **parts)) == [{"a": "1"}]
    far = head + '<row r="99999999999"><c><v>1</v></c></row>'
    with pytest.raises(ValueError, match="at most 1000000 rows"):
        read_sheet(book(path, far))


def test_the_sheet_with_the_wanted_columns_is_taken(tmp_path: Path) -> None:
    def sheet(name: str) -> str:
        cell = f'<c t="inlineStr"><is><t>{name}</t></is></c>'
        return f"<row>{cell}</row><row>{cell}</row>"

    second = f"<worksheet {MAIN}><sheetData>{sheet('prediction')}</sheetData></worksheet>"
    path = book(tmp_path / "a.xlsx", sheet("notes"), **{"xl/worksheets/sheet1.xml": second})
    assert read_sheet(path) == [{"notes": "notes"}]
    assert read_sheet(path, lambda names: "prediction" in names) == [{"prediction": "prediction"}]
    assert read_sheet(path, lambda names: "index" in names) == [{"notes": "notes"}]


def test_what_openpyxl_wrote_is_read_back(tmp_path: Path) -> None:
    made = openpyxl.Workbook()
    sheet = made.active
    for row in (
        ["index", "prediction", "n"],
        [1, "（Ｂ）\nas", 2.5],
        [2, True, None],
        [3, "=1+1", 7],
    ):
        sheet.append(row)
    sheet.merge_cells("B3:C3")
    made.save(tmp_path / "a.xlsx")
    assert read_sheet(tmp_path / "a.xlsx") == [
        {"index": "1", "prediction": "（Ｂ）\nas", "n": "2.5"},
        {"index": "2", "prediction": "1", "n": ""},
        {"index": "3", "prediction": "", "n": "7"},  # a formula that no program has computed
    ]


@pytest.mark.parametrize("damage", ["cut", "bits", "text", "empty"])
def test_damaged_spreadsheets_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    whole = book(tmp_path / "a.xlsx", '<row r="1"><c><v>1</v></c></row>').read_bytes()
    data = {
        "cut": whole[: len(whole) // 2],
        "bits": whole[:900] + bytes(b ^ 0xFF for b in whole[900:960]) + whole[960:],
        "text": b"index,prediction\n1,B\n",
        "empty": b"",
    }[damage]
    path = tmp_path / "b.xlsx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"b\.xlsx: expected a spreadsheet \.xlsx") as told:
        read_sheet(path)
    assert "\n" not in str(told.value)


def test_a_vlmevalkit_spreadsheet_is_read_like_its_csv(tmp_path: Path) -> None:
    answers = read_answers(files.key(tmp_path))
    table = files.vlmevalkit(tmp_path / "a.csv")
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    cells = "".join(
        "<row>" + "".join(f'<c t="inlineStr"><is><t>{v}</t></is></c>' for v in row) + "</row>"
        for row in rows
    )
    found = read_dump(book(tmp_path / "b.xlsx", cells), answers)
    expected = read_dump(table, answers)
    assert found.sha256 == expected.sha256 and len(found.predictions) == len(answers)
