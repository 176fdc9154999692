"""A nano of each family, with random weights."""

from __future__ import annotations

import sys

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "nano"))

from models import BUILDERS, Nano, build_nano


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def nano(request: pytest.FixtureRequest) -> Nano:
    return build_nano(request.param, seed=0)
