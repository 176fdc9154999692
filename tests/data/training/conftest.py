"""A folder with two photos, for the tests of training data."""

from __future__ import annotations

from pathlib import Path

import pytest
import trees


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(2):
        trees.photo(tmp_path / f"p/{k}.jpg", 40 * k)
    return tmp_path
