"""What libraries say that nobody can act on stays away; everything else comes through."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from commands import ENV, launch
from places import ROOT
from transformers.utils import logging as transformers_logging

from kvfix.quiet import LOG_LINES, WARNINGS, no_bars, quiet

UNWANTED = re.compile(
    r"warn|deprecat|tqdm|it/s|Loading weights|gemm_4bit|Setting (ds_)?accelerator", re.I
)


def unwanted(text: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", text) if UNWANTED.search(line)]


def test_an_evaluation_shows_nothing_of_libraries(tmp_path: Path) -> None:
    ended = launch("eval", "--limit", 1, "--task", "mcq", "--site", "value", "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert unwanted(ended.err + ended.out) == []


@pytest.mark.slow
def test_a_training_shows_nothing_of_libraries(tmp_path: Path) -> None:
    words = ["steps=2", "batch=2", f"out={tmp_path / 'out'}"]
    command = [sys.executable, ROOT / "recipes" / "train_surfacing.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=900)
    assert done.returncode == 0, done.stderr
    assert unwanted(done.stderr + done.stdout) == []


@pytest.mark.parametrize("warned", WARNINGS)
def test_a_warning_is_left_out_by_its_words_and_class_alone(warned) -> None:
    with pytest.warns(Warning) as shown, quiet():
        warnings.warn(f"{warned.words} and more", warned.category, stacklevel=1)
        warnings.warn(f"something else than {warned.words}", warned.category, stacklevel=1)
        warnings.warn(warned.words, DeprecationWarning, stacklevel=1)
    assert len(shown) == 2


@pytest.mark.parametrize("line", LOG_LINES)
def test_a_log_line_is_left_out_in_the_block_and_by_its_words_alone(line, caplog) -> None:
    logger = logging.getLogger(line.logger)
    logger.addHandler(caplog.handler)  # DeepSpeed's does not hand on
    try:
        with quiet():
            logger.error("%s and more", line.words)
            logger.error("another")
        logger.error("%s afterwards", line.words)
    finally:
        logger.removeHandler(caplog.handler)
    said = {record.getMessage() for record in caplog.records}
    assert said == {"another", f"{line.words} afterwards"}


def test_bars_are_off_in_the_block_alone() -> None:
    before = transformers_logging.is_progress_bar_enabled()
    with no_bars():
        assert not transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled() == before


def test_pytest_is_told_of_the_same_warnings() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    filters = config["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert filters[0] == "error"
    for warned in WARNINGS:
        assert f"ignore:{warned.words}:{warned.category.__name__}" in filters
