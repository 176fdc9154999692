"""Where the checkout lies, and the photos and reference numbers that are shared beside it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("KVFIX_SHARED", ROOT.parent / "shared"))
CONFIGS = Path(__file__).with_name("configs")  # real config.json files, for `kvfix plan`
