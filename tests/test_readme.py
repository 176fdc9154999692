"""What the pages say: commands have these options, files are there, figures are known."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
from commands import call
from places import ROOT

from kvfix import cli
from kvfix.config import load_config
from kvfix.shipped import nano_dir

README = "README.md"
PAGES = (
    *(
        README,
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "benchmarks/RESULTS.md",
        "eval/PAPER.md",
        "eval/README.md",
    ),
    *("recipes/README.md", "recipes/experiment/RESULTS.md", "recipes/nano/README.md"),
)
FIGURES = ("recipes/experiment/RESULTS.md", "benchmarks/RESULTS.md")
LONGEST = 150  # lines of the README
FIRST = """\
```bash
pip install -e . && kvfix diagnose            # the main job: needs no download of weights or data
pip install -e '.[test]' && pytest -n 2 --dist loadfile  # every test, in two processes
```
"""
ROOMS = (".ci", "benchmarks", "checkpoints", "eval", "kvfix", "recipes", "tests")
LAUNCHERS = ("python", "deepspeed", "torchrun")
OTHERS = ("mypy", "pip", "pre-commit", "pytest", "ruff")  # nothing of ours to check


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(markdown: str) -> str:
    """The commands of all blocks, a line each."""
    found = re.findall(r"^```bash\n(.*?)^```", markdown, re.M | re.S)
    return "".join(found).replace("\\\n", " ")


def commands(markdown: str) -> Iterator[list[str]]:
    """Words of each command of the blocks."""
    for line in blocks(markdown).splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield words
                words = []


def spoken(markdown: str) -> list[str]:
    """What stands in backticks in the text."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S))


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, as far as they name one, and its own words."""
    command: Any = typer.main.get_command(cli.app)
    rest = words[1:]
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no command {rest[0]!r} in: {shlex.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def check_options(words: list[str]) -> None:
    """Whether the command has these options, for commands that are only mentioned."""
    command, rest = command_of(words)
    known = {"--help"}.union(*(p.opts + p.secondary_opts for p in command.params))
    for word in rest:
        assert not word.startswith("-") or word.partition("=")[0] in known, f"{word} in {words}"


def check_kvfix(words: list[str]) -> None:
    """Whether a whole command is one that typer takes; nothing is run."""
    command, rest = command_of(words)
    assert not hasattr(command, "commands"), f"expected a whole command, found {shlex.join(words)}"
    if "--help" not in rest:
        command.make_context(shlex.join(words), list(rest))


def config_class(script: str) -> type | None:
    """What `key=value` of a script changes."""
    if script in ("recipes/experiment/run.py", "recipes/experiment/tables.py"):
        sys.path.insert(0, str(ROOT / "recipes" / "experiment"))
        from run import Grid

        return Grid
    if Path(script).name in ("repair.py", "train_surfacing.py", "train_artifacts.py"):
        from kvfix.repair.train.recipe import Recipe

        return Recipe
    return None


def check_script(words: list[str]) -> None:
    """Whether a script is there and knows these options and settings."""
    place = next(n for n, word in enumerate(words) if word.endswith(".py"))
    script, rest = words[place], words[place + 1 :]
    assert (ROOT / script).is_file(), f"no file {script}"
    source = text(script)
    for word in rest:
        main = text("kvfix/repair/train/recipe.py") if "from_command_line" in source else ""
        assert not word.startswith("--") or f'"{word}"' in source + main, f"{word}: {words}"
    settings = [
        word
        for before, word in pairwise(["", *rest])
        if re.match(r"[a-z_.]+=", word) and not before.startswith("--")
    ]
    if (cls := config_class(script)) is not None:
        given = dict(pairwise(rest))
        name = given.get("--recipe", Path(script).stem.replace("repair", "train_surfacing"))
        config = given.get("--config", f"recipes/{name}.yaml" if cls.__name__ == "Recipe" else None)
        load_config(cls, config and ROOT / config, settings)
    else:
        for setting in settings:
            name = setting.partition("=")[0].split(".")[0]
            assert re.search(rf"^    {name}: ", source, re.M), f"{setting}: {words}"


def check(words: list[str]) -> None:
    """One command of a block."""
    if words[0] == "kvfix":
        check_kvfix(words)
    elif words[0] in LAUNCHERS:
        check_script(words)
    elif words[0].partition("/")[0] in ROOMS:
        assert (ROOT / words[0]).is_file(), f"no file {words[0]}"
    else:
        assert words[0] in OTHERS, f"expected a command of ours, found {shlex.join(words)}"


def missing(markdown: str, page: str) -> list[str]:
    """Links, and files of the repository that are named, that are not there."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", markdown)
    lost = [
        link
        for link in links
        if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()
    ]
    for name in spoken(markdown):
        inside = re.fullmatch(r"([\w.-]+)/[\w./*-]+\.[a-z0-9]+", name)
        if inside and inside[1] in ROOMS and not any(ROOT.glob(name)):
            lost.append(name)
    return lost


def figures(markdown: str) -> set[str]:
    """Decimals, with their signs, and with their intervals where those follow."""
    return set(re.findall(r"(?:(?<!\d)[+-])?\d+\.\d+(?: \[[^\]]+\])?", markdown))


def test_the_readme_is_one_page_that_begins_with_its_two_commands() -> None:
    page = text(README)
    assert len(page.splitlines()) <= LONGEST
    assert FIRST in "\n".join(page.splitlines()[:15]) + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_that_are_named_are_there(page: str) -> None:
    assert missing(text(page), page) == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_blocks_are_ones_that_can_be_given(page: str) -> None:
    for words in commands(text(page)):
        check(words)


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_mentioned_have_these_options(page: str) -> None:
    for said in spoken(text(page)):
        if said.startswith("kvfix "):
            check_options(shlex.split(said))
        elif said.split()[0] in LAUNCHERS and ".py" in said:
            check_script(shlex.split(said))


def test_figures_of_the_readme_stand_in_the_pages_of_figures() -> None:
    """Decimals outside of backticks; each page of figures names the commands that print them."""
    said = re.sub(
        r"```.*?```|`[^`]+`|arXiv \S+|Python \S+|Apache-\S+", "", text(README), flags=re.S
    )
    known = figures("".join(map(text, FIGURES)))
    assert len(figures(said)) > 20
    assert figures(said) - known == set()


@pytest.mark.parametrize(
    "line",
    [
        "kvfix diagnose --modle DIR",
        "kvfix diagnose --limit none",
        "kvfix repair --limits 3",
        "kvfix train",
        "kvfix score",
        "kvfix merge --adapter DIR",  # --out is missing
        "python recipes/train_nothing.py",
        "python recipes/train_surfacing.py stepps=3",
        "python recipes/train_surfacing.py --configs recipes/train_surfacing.yaml",
        "deepspeed recipes/train_surfacing.py --config recipes/gone.yaml",
        "python recipes/experiment/run.py own=DIR",  # several families
        "python benchmarks/train.py --trll",
        "cat README.md",
    ],
)
def test_a_command_that_cannot_be_given_is_found(line: str) -> None:
    [words] = commands(f"```bash\n{line}\n```\n")
    with pytest.raises(Exception, match=r"."):
        check(words)


def test_a_page_that_names_what_is_not_there_is_found() -> None:
    page = "[a](gone.md), [b](README.md), `recipes/gone.py`, `recipes/repair.py`, `runs/x.html`"
    assert missing(page, README) == ["gone.md", "recipes/gone.py"]


SMALL = ("--limit", "1", "--task", "foreground_segmentation")  # a run of seconds


def runnable() -> list[list[str]]:
    """The README's kvfix commands that need neither a download nor data of one's own, small."""
    found = []
    for words in commands(text(README)):
        if words[0] != "kvfix" or words[1] in ("repair", "train", "score") or "--adapter" in words:
            continue  # a trained model, or predictions
        if any("=" in w or ("/" in w and not w.startswith("runs/")) for w in words[2:]):
            continue  # data of one's own, or a hub id
        words = [str(nano_dir()) if w == "DIR" else w for w in words]
        found.append([*words, *SMALL] if words[1] in ("diagnose", "eval") else words)
    return found


def test_commands_of_the_readme_that_need_no_download_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = runnable()
    for words in ran:
        if words[1] == "compare":  # its other run has an adapter
            words[-1] = words[-2]
        ended = call(*words[1:])
        assert ended.code == 0, (words, ended.err)
    assert {words[1] for words in ran} >= {"diagnose", "eval", "compare", "data", "families"}
    assert (tmp_path / "runs/diagnose/report.html").stat().st_size > 0
    assert (tmp_path / "runs/compare/compare.html").stat().st_size > 0


def test_the_picture_of_a_report_is_small() -> None:
    assert (ROOT / "benchmarks/report.webp").stat().st_size < 150_000
