"""The command line: fast to answer, one clear line for what fails, exit codes 0, 1 and 2."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trees
from commands import KVFIX, call, launch

import kvfix
from kvfix import cli
from kvfix.diagnose import run as command
from kvfix.session import ModelOptions

MODELS = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes", "accelerate")
LIBRARIES = (*MODELS, "scipy", "matplotlib", "datasets", "pyarrow", "jinja2")
HEAVY = (*LIBRARIES, "numpy", "PIL")
LOOK = """
import sys
import kvfix
assert kvfix.__version__ and "load_mlm" in dir(kvfix)
from kvfix.cli import main
code = 0
try:
    main()
except SystemExit as stop:
    code = stop.code
print([name for name in {heavy} if name in sys.modules])
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "code", "heavy"),
    [
        (["--help"], 0, HEAVY),
        (["diagnose", "-h"], 0, HEAVY),
        (["diagnose", "--only", "flows"], 2, HEAVY),
        (["eval", "--site", "soul"], 2, HEAVY),
        (["compare", "one"], 2, HEAVY),
        (["plan", "--image", "5"], 2, HEAVY),
        (["train", "drawing"], 2, HEAVY),
        (["repair", "--help"], 0, HEAVY),
        (["score", "spair"], 2, HEAVY),
        (["diagnose", "--task", "sorting"], 2, LIBRARIES),  # names are in the readers' table
        (["eval", "--data", "imagenet"], 2, LIBRARIES),
        (["data", "list"], 0, LIBRARIES),
    ],
)
def test_help_and_wrong_usage_import_nothing_heavy(
    words: list[str], code: int, heavy: tuple[str, ...]
) -> None:
    start = [sys.executable, "-c", LOOK.format(heavy=heavy), *words]
    done = subprocess.run(start, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, "[]"), done.stderr


def test_a_comparison_imports_no_model() -> None:
    look = f"import sys, kvfix.compare.run\nprint([n for n in {MODELS} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_and_import_answer_at_once() -> None:
    def seconds(*words: str) -> float:
        """Of processor time: other programs on the machine do not count."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert seconds(KVFIX, "--help") < 1.0
    assert seconds(sys.executable, "-c", "import kvfix") < 1.0


def test_every_public_name_is_there() -> None:
    assert all(getattr(kvfix, name) is not None for name in kvfix.__all__)
    assert set(dir(kvfix)) == set(kvfix.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load_llm'"):
        kvfix.load_llm  # noqa: B018


def test_version_and_help_are_no_failure() -> None:
    assert call("--version")[:2] == (0, f"{kvfix.__version__}\n")
    helped = call("diagnose", "--help")
    assert helped.code == 0
    for option in ("--model", "--data", "--task", "--limit", "--out", "--heads", "--json"):
        assert option in helped.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["diagnoze"], "No such command 'diagnoze'"),
        (["diagnose", "--modle", "x"], "No such option"),
        (["diagnose", "--limit", "0"], "greater than or equal to 1"),
        (["diagnose", "--limit", "many"], "limit"),
        (["diagnose", "--seed", "-1"], "greater than or equal to 0"),
        (["diagnose", "--dtype", "float7"], "'float7' is not one of"),
        (["diagnose", "--quant", "q2"], "'q2' is not one of"),
        (["diagnose", "--attn", "none"], "'none' is not one of"),
        (["diagnose", "--task", "sorting"], "task: expected one of cosegmentation, "),
        (["diagnose", "--data", "imagenet"], "data: expected one of scenes, "),
        (["diagnose", "--data", "davis2017"], "expected davis2017=DIR"),
        (["diagnose", "--data", "scenes", "--data", "scenes"], "each dataset once"),
        (["data", "check", "imagenet=x"], "data: expected one of scenes, "),
        (["data", "check"], "Missing argument"),
    ],
)
def test_wrong_usage_exits_2_before_anything_is_loaded(words: list[str], says: str) -> None:
    with pytest.MonkeyPatch.context() as no_model:
        no_model.setattr(ModelOptions, "load", None)
        ended = call(*words)
    assert ended.code == 2
    assert says in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err and ended.out == ""


def test_no_command_shows_the_commands() -> None:
    ended = call()
    assert "diagnose" in ended.out + ended.err and "Traceback" not in ended.err


def failing(error: BaseException) -> Callable[..., None]:
    def run(*args: object, **kwargs: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.json:\n  expected  JSON"), "error: a.json: expected JSON"),
        (FileNotFoundError("no [bold]such[/bold] folder"), "error: no [bold]such[/bold] folder"),
        (ValueError("1-2:dog: broken"), "error: 1-2:dog: broken"),  # no emoji
        (RuntimeError("no GPU"), "error: RuntimeError: no GPU (KVFIX_DEBUG=1 shows where)"),
        (KeyError("x"), "error: KeyError: 'x' (KVFIX_DEBUG=1 shows where)"),
        (ValueError("x" * 300), "error: " + "x" * 300),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "diagnose", failing(error))
    ended = call("diagnose")
    assert ended == (1, "", line + "\n")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "diagnose", failing(RuntimeError("no GPU")))
    monkeypatch.setenv("KVFIX_DEBUG", "1")
    with pytest.raises(RuntimeError, match="no GPU"):
        call("diagnose")


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "diagnose", failing(KeyboardInterrupt()))
    ended = call("diagnose")
    assert ended.code == 130 and "the same command goes on" in ended.err


def outcome(left_out: int, total: int, *, failed: bool) -> command.Outcome:
    record = {
        "results": [],
        "findings": [],
        "seconds": 1.0,
        "peak_memory_mib": 900.0,
        "starts": [{"host": {"ranks": 1}}],
        "data": [{"n": total}],
        "left_out": [
            {"id": f"{i}-a:dog", "why": f"[{'x' * 120}]: broken"} for i in range(left_out)
        ],
    }
    return command.Outcome(record, Path("run[1]/report.html"), failed)


def test_units_left_out_are_listed_and_too_many_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "diagnose", lambda *a, **k: outcome(12, 100, failed=True))
    ended = call("diagnose")
    assert ended.code == 1
    assert "at most 5 %" in ended.error and "12 of 100" in ended.error
    listed = [line for line in ended.err.splitlines() if line.startswith("left out")]
    assert listed[0] == f"left out 0-a:dog: [{'x' * 120}]: broken" and len(listed) == 10
    assert "2 more units" in ended.err and "run[1]/report.html" in ended.err
    monkeypatch.setattr(command, "diagnose", lambda *a, **k: outcome(1, 20, failed=False))
    assert call("diagnose").code == 0


def test_json_alone_goes_to_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(*args: object, **kwargs: object) -> command.Outcome:
        print("[WARNING] a library that writes to stdout")
        return outcome(0, 1, failed=False)

    monkeypatch.setattr(command, "diagnose", noisy)
    ended = call("diagnose", "--json")
    assert ended.out.startswith("{") and "WARNING" in ended.err
    assert call("diagnose").out == ""


def test_the_datasets_are_listed_and_checked(tmp_path: Path) -> None:
    listed = call("data", "list")
    assert listed.code == 0
    for name in ("scenes", "davis2017=DIR", "spair71k=DIR", "JPEGImages/480p"):
        assert name in listed.err
    root = trees.davis(tmp_path / "DAVIS")
    assert call("data", "check", f"davis2017={root}").code == 0
    (root / "JPEGImages/480p/goat/00001.jpg").write_bytes(b"rubbish")
    ended = call("data", "check", f"davis2017={root}")
    assert ended.code == 1 and "00001.jpg" in ended.err
    ended = call("data", "check", f"davis2017={tmp_path / 'nowhere'}")
    assert ended.code == 1 and "no such folder" in " ".join(ended.err.split())


def test_the_installed_command_is_this_one() -> None:
    assert launch("--version").out.strip() == kvfix.__version__ == cli.kvfix.__version__


def test_python_m_kvfix_is_the_same_command() -> None:
    words = [sys.executable, "-m", "kvfix", "--version"]
    assert subprocess.run(words, capture_output=True, text=True).stdout.strip() == kvfix.__version__


def test_the_shell_completes_names() -> None:
    words = {"COMP_WORDS": "kvfix eval --task sem", "COMP_CWORD": "3"}
    env = os.environ | words | {"_KVFIX_COMPLETE": "complete_bash"}
    done = subprocess.run([KVFIX], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["semantic_correspondence", "semantic_segmentation"]
