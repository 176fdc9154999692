"""Spreadsheets as openpyxl and XlsxWriter lay them out, part by part."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import dump_files as files
import pytest

from kvfix.eval.dumps import read_answers, read_dump
from kvfix.eval.spreadsheet import read_sheet

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
RELATIONS = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
PARTS = {
    "xl/workbook.xml": f'<workbook {MAIN} xmlns:r="http://schemas.openxmlformats.org/'
    'officeDocument/2006/relationships"><sheets><sheet name="a" sheetId="7" r:id="rId3"/>'
    '<sheet name="b" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f"<Relationships {RELATIONS}>"
    '<Relationship Id="rId1" Target="worksheets/sheet1.xml"/>'
    '<Relationship Id="rId3" Target="/xl/worksheets/sheet2.xml"/></Relationships>',
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
        "<si><r><t>re</t></r><r><rPr><b/></rPr><t>d &amp; b</t></r><rPh><t>no</t></rPh></si>"
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
        ({"xl/_rels/workbook.xml.rels": f"<Relationships {RELATIONS}/>"}, "its first sheet's part"),
        (
            {"xl/sharedStrings.xml": "<!DOCTYPE sst [<!ENTITY a 'aaaa'>]><sst>&a;</sst>"},
            "without document type",
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
    monkeypatch.setattr("kvfix.eval.spreadsheet._LARGEST_PART", 20)
    with pytest.raises(ValueError, match="expected at most 20 bytes in xl/"):
        read_sheet(book(tmp_path / "a.xlsx", ""))


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
