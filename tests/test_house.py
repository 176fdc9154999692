"""The house stays easy to read: no file and no folder of the library grows too large."""

from __future__ import annotations

import tomllib
from pathlib import Path

from count_lines import LONGEST_FILE, MOST_MODULES, Lines, full_folders, lines_of, long_files
from places import ROOT


def test_no_file_of_the_library_is_longer_than_400_lines() -> None:
    assert long_files(ROOT) == {}


def test_no_folder_of_the_library_holds_more_than_15_modules() -> None:
    assert full_folders(ROOT) == {}


def test_a_file_and_a_folder_that_are_too_large_are_found(tmp_path: Path) -> None:
    room = tmp_path / "kvfix" / "room"
    room.mkdir(parents=True)
    (room / "__init__.py").touch()
    for k in range(MOST_MODULES):
        (room / f"module_{k}.py").write_text("x = 1\n" * LONGEST_FILE)
    assert (long_files(tmp_path), full_folders(tmp_path)) == ({}, {})
    (room / "one_more.py").write_text("x = 1\n" * (LONGEST_FILE + 1))
    assert long_files(tmp_path) == {"kvfix/room/one_more.py": LONGEST_FILE + 1}
    assert full_folders(tmp_path) == {"kvfix/room": MOST_MODULES + 1}


def test_code_and_docstrings_are_counted_without_comments_and_blank_lines() -> None:
    text = '"""Two\n\nlines."""\n\n# a comment\nx = (\n    1,  # one\n)\n\ny = """a\n\nb"""\n'
    assert lines_of(text) == Lines(code=5, docstrings=2)


def test_a_wheel_holds_every_room() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for top, name in (("kvfix", "kvfix"), ("eval", "kvfix.eval")):
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            assert ".".join([name, *folder.relative_to(ROOT / top).parts]) in listed
