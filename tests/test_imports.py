"""Imports point one way: drawn from the code, module by module and room by room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

# A room may import what stands before it. A room is a folder or a file directly below kvfix/.
ORDER = (
    *(
        "checkout",
        "wording",
        "bounds",
        "launchers",
        "threads",
        "ranks",
        "quiet",
        "shipped",
        "findings",
        "data",
        "checkpoint",
    ),
    *("config", "terminal", "adapters", "mlm", "runs", "eval", "session", "report", "score"),
    *(
        "evaluate",
        "diagnose",
        "repair",
        "compare",
        "merge",
        "recipes",
        "commands",
        "cli",
        "__main__",
    ),
)

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of the library by its dotted name, as pyproject.toml installs it."""
    found = {}
    library = (*root.glob("kvfix/**/*.py"), *root.glob("eval/**/*.py"), *root.glob("recipes/*.py"))
    for path in library:
        parts = list(path.relative_to(root).with_suffix("").parts)
        if parts[0] != "kvfix":
            parts.insert(0, "kvfix")
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


def imports(text: str, known: set[str]) -> Iterator[str]:
    """Modules of the library that a source imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def graph(files: dict[str, Path]) -> Graph:
    known = set(files)
    return {m: set(imports(p.read_text(encoding="utf-8"), known)) - {m} for m, p in files.items()}


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def against(arrows: Graph) -> list[str]:
    """Arrows from a room to one that stands after it."""
    place = {name: i for i, name in enumerate(ORDER)}
    out = []
    for module, targets in arrows.items():
        for target in targets:
            a, b = room(module), room(target)
            if a == b or not a or not b:
                continue
            if place[b] > place[a]:
                out.append(f"{module} -> {target}")
    return sorted(out)


def circle(arrows: Graph) -> list[str] | None:
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        return error.args[1]
    return None


@pytest.fixture(scope="module")
def arrows() -> Graph:
    return graph(modules(ROOT))


def test_every_room_has_its_place_in_the_order(arrows: Graph) -> None:
    assert {room(m) for m in arrows} - {""} == set(ORDER)


def test_no_module_imports_itself_by_a_detour(arrows: Graph) -> None:
    assert circle(arrows) is None


def test_no_room_imports_one_that_stands_after_it(arrows: Graph) -> None:
    assert against(arrows) == []


def test_an_arrow_against_the_order_and_a_circle_are_found() -> None:
    known = {"kvfix.data.units", "kvfix.cli", "kvfix.data"}
    text = "def late():\n    from kvfix import cli\n    from kvfix.cli import main\n"
    wrong = {"kvfix.data.units": set(imports(text, known)), "kvfix.cli": {"kvfix.data.units"}}
    assert against(wrong) == ["kvfix.data.units -> kvfix.cli"]
    assert circle(wrong) is not None
