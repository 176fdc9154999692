"""How much there is to read: code and docstring lines of each room of kvfix and eval.

    python tests/helpers/count_lines.py [ROOT]

A line counts as code if a token other than a comment stands on it, as docstring if it belongs to
one; blank lines count as neither. Below the rooms stand files of more than 400 lines and folders of
more than 15 modules, of which there should be none.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LONGEST_FILE = 400  # lines of any kind
MOST_MODULES = 15  # in a folder, its __init__ aside
LIBRARY = ("kvfix", "eval")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


class Lines(NamedTuple):
    """Lines to read."""

    code: int
    docstrings: int


def lines_of(text: str) -> Lines:
    """Count the lines of a Python source."""
    written = {number for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            first = node.body[0]
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return Lines(len((code - docstrings) & written), len(docstrings & written))


def library(root: Path) -> Iterator[Path]:
    """Every module of the library, in order."""
    for top in LIBRARY:
        yield from sorted((root / top).rglob("*.py"))


def room(path: Path, root: Path) -> str:
    """The first two folders of a module's path, such as `kvfix/data`."""
    return "/".join(path.relative_to(root).parent.parts[:2])


def long_files(root: Path) -> dict[str, int]:
    """Files that are longer than they may be, and their lines of any kind."""
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in library(root)}
    return {str(p.relative_to(root)): n for p, n in lengths.items() if n > LONGEST_FILE}


def full_folders(root: Path) -> dict[str, int]:
    """Folders that hold more modules than they may, and how many."""
    modules = [p for p in library(root) if p.name != "__init__.py"]
    counts = Counter(str(p.parent.relative_to(root)) for p in modules)
    return {folder: n for folder, n in counts.items() if n > MOST_MODULES}


def main(root: Path) -> None:
    """Print the table."""
    rooms: dict[str, Lines] = {}
    for path in library(root):
        found, before = lines_of(path.read_text(encoding="utf-8")), rooms.get(room(path, root))
        rooms[room(path, root)] = Lines(
            found.code + (before.code if before else 0),
            found.docstrings + (before.docstrings if before else 0),
        )
    code, docstrings = (sum(counts) for counts in zip(*rooms.values(), strict=True))
    print(f"{'':22}{'code':>7}{'docs':>7}{'both':>7}")
    for name, lines in (*sorted(rooms.items()), ("all", Lines(code, docstrings))):
        print(f"{name:22}{lines.code:7}{lines.docstrings:7}{sum(lines):7}")
    for name, n in long_files(root).items():
        print(f"{name}: {n} lines, more than {LONGEST_FILE}")
    for name, n in full_folders(root).items():
        print(f"{name}: {n} modules, more than {MOST_MODULES}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
