"""What reaches the terminal stands on it: no text from data steers it or writes markup."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import two_runs
from commands import call
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text
from two_runs import AFTER_QUIZ, BEFORE_QUIZ, curve, probe_run, quiz, save

from kvfix import terminal
from kvfix.diagnose import run as command
from kvfix.runs.folder import Outcome
from kvfix.terminal import RichWatch, console, guarded, harmless, labelled

# Red, a window title, a link, a C1 introducer, a cleared line, a bell, text from right to left.
CODES = "\x1b[31m\x1b]0;owned\x07\x1b]8;;http://evil.test\x1b\\\x9b2J\r\x08\x7f\u202e\u2066\u200f"
MARKUP = "[red]red[/red][link=http://evil.test]here[/link][/nothing]:dog:"
HOSTILE = f"{CODES}{MARKUP}\u2028error: forged \x85error: forged \udcff"
LINES = f"{HOSTILE}\nerror: forged\r\nerror: forged"
ACTING = re.compile(
    "[^\n\t\x20-\x7e\xa0-\u200d\u2010-\u2027\u202f-\u2065\u2070-\ud7ff\ue000-\uffff]"
)


def poison(item: Any) -> Any:
    """The same JSON value with every text hostile."""
    if isinstance(item, str):
        return f"{item}{HOSTILE}"
    if isinstance(item, list):
        return [poison(i) for i in item]
    return {k: poison(v) for k, v in item.items()} if isinstance(item, dict) else item


def shows_it_harmlessly(text: str) -> None:
    assert not ACTING.search(text), ACTING.findall(text)
    assert "red" in text
    assert not re.search(r"^error: forged", text, re.M)


def test_what_acts_is_replaced_and_the_rest_stays() -> None:
    assert ACTING.search(harmless(HOSTILE)) is None
    for kept in ("é ü 日本 🐕", "a\tb\nc", "100 % – “so”", "\u00a0 \u200d"):
        assert harmless(kept) == kept
    for code in [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]:
        assert harmless(f"a{chr(code)}b") == (f"a{chr(code)}b" if code in (9, 10) else "a\ufffdb")


def test_markup_is_text_wherever_it_is_printed() -> None:
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    for shown in (HOSTILE, Text(HOSTILE), table):
        with console.capture() as got:
            console.print(shown)
        shows_it_harmlessly(got.get())
        folded = re.sub(r"\s", "", got.get())  # over several lines
        assert folded.count("[red]red[/red][link=") == (5 if shown is table else 1)


def test_colours_are_still_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_color_system", console._color_system or 1)
    monkeypatch.setattr(console, "_force_terminal", True)
    with console.capture() as got:
        labelled("note", "yellow", "x\x1b[31m")
    assert got.get().startswith("\x1b[33mnote\x1b[0m") and got.get().count("\x1b") == 2


def test_progress_shows_what_runs_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    with RichWatch().phase(HOSTILE, 1) as tick:
        tick(HOSTILE)
    RichWatch().say(HOSTILE)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(HOSTILE, total=1)
    err = capsys.readouterr().err
    assert not ACTING.search(err) and MARKUP in err


def test_off_a_terminal_a_phase_is_told_in_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "SOON", 0.01)
    monkeypatch.setattr(terminal, "LATER", 0.01)
    with RichWatch().phase("probing", 4) as tick:
        tick("semantic_segmentation")
        tick("semantic_segmentation")
        time.sleep(0.2)
    with RichWatch().phase("statistics"):
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "probing 0 of 4"
    assert re.fullmatch(r"probing 2 of 4, 0 s, \d+ s left", lines[1])
    whole = lines.index("statistics ...")
    assert whole > 3 and re.fullmatch(r"probing 2 of 4, 0 s, \d+ s left", lines[whole - 1])
    assert set(lines[whole + 1 :]) == {"statistics 0 s"}


def test_a_phase_that_fails_stops_telling(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), RichWatch().phase("probing", 4):
        raise ValueError("broken")
    assert threading.active_count() == len(threading.enumerate()) and not any(
        "tell" in thread.name for thread in threading.enumerate()
    )


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError])
def test_messages_of_errors_are_one_line(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        logging.getLogger("kvfix.somewhere").warning("%s", LINES)
        raise error(LINES)

    with pytest.raises(SystemExit):
        guarded(fails)
    err = capsys.readouterr().err
    shows_it_harmlessly(err)
    assert [line.partition(" ")[0] for line in err.splitlines()] == ["note", "error:"]


def test_warnings_of_the_library_are_notes_of_the_command_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    guarded(lambda: logging.getLogger("kvfix.x").warning("from %s", "within"))
    assert capsys.readouterr().err == "note from within\n"
    before = list(logging.getLogger("kvfix").handlers)
    with pytest.raises(SystemExit):
        guarded(lambda: sys.exit(3))
    assert logging.getLogger("kvfix").handlers == before == []


def test_a_run_of_hostile_units_is_shown_harmlessly(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {
        "results": [],
        "findings": [poison({"id": "flow", "text": "red", "clear": True, "task": "t"})],
        "notes": [LINES],
        "seconds": 1.0,
        "peak_memory_mib": 900.0,
        "starts": [{"host": {"ranks": 2}}],
        "data": [{"n": 100}],
        "left_out": [{"id": "x" * 10**6, "why": "long"}, {"id": LINES, "why": LINES}],
    }
    found = Outcome(record, Path(f"{HOSTILE}/report.html"), failed=False)
    monkeypatch.setattr(command, "diagnose", lambda *a, **k: found)
    ended = call("diagnose", "--json")
    shows_it_harmlessly(ended.err)
    assert sum(line.startswith("left out") for line in ended.err.splitlines()) == 2
    assert len(ended.err) < 10_000
    assert json.loads(ended.out)["left_out"] == record["left_out"]
    assert not ACTING.search(ended.out)  # escaped as JSON escapes


@pytest.mark.parametrize("probes", [False, True])
def test_a_comparison_of_hostile_runs_is_shown_harmlessly(probes: bool, tmp_path: Path) -> None:
    keys = ("id", "task", "cluster", "letter", "answer", "dataset")
    pair = [probe_run(curve(3)), probe_run(curve(3, lift={"value": 0.1}))] if probes else []
    pair = pair or [quiz(BEFORE_QUIZ), quiz(AFTER_QUIZ)]
    folders = []
    for name, rows in zip((f"before{CODES.replace('/', '')}", "after"), pair, strict=True):
        bad = [{**r, **{k: f"{r[k]}{HOSTILE}" for k in keys if r.get(k)}} for r in rows]
        more = {"rows": 1, **({"id": f"{name}{HOSTILE}"})}
        bad.append({**bad[0], **more} if not probes else bad.pop())
        data = [{**two_runs.DATA, "dataset": HOSTILE}]
        card = {"command": HOSTILE, "model": {"id": HOSTILE, "adapter": HOSTILE}}
        print_of = {"weights": name, "profile": "kvfix", "prompt": f"{name}{HOSTILE}"}
        folders.append(save(tmp_path / name, bad, data=data, fingerprint=print_of, **card))
    ended = call("compare", *folders, "--out", tmp_path / f"out{CODES.replace('/', '')}", "--json")
    assert ended.code == 0, ended.err
    shows_it_harmlessly(ended.err)
    assert MARKUP.partition("[link")[0] in re.sub(r"\s", "", ended.err)
    assert json.loads(ended.out)["notes"] and not ACTING.search(ended.out)


def test_hostile_names_on_the_command_line_are_shown_harmlessly(tmp_path: Path) -> None:
    folder = tmp_path / f"no{CODES.replace('/', '')}{MARKUP.replace('/', '')}"
    for words in (
        ("eval", "--model", folder, "--out", tmp_path / "out"),
        ("eval", "--adapter", folder, "--out", tmp_path / "out"),
        ("eval", "--data", f"blink={folder}", "--out", tmp_path / "out"),
        ("eval", "--data", HOSTILE, "--out", tmp_path / "out"),
        ("compare", folder, folder),
        ("data", "check", f"blink={folder}"),
        ("data", "check", HOSTILE),
        ("score", "blink", "--predictions", folder, "--truth", folder),
        ("plan", "--model", folder),
    ):
        ended = call(*words)
        assert ended.code in (1, 2), (words, ended)
        err = re.sub(r"\rLoading weights:[^\r\n]*", "", ended.err)  # a bar of transformers
        assert not ACTING.search(err), (words[:2], ACTING.findall(err))
        assert "Traceback" not in ended.err
