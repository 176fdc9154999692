"""Class names of ImageNet-1k (ILSVRC 2012): WordNet id -> the first word of its synset.

ImageNet-S names its classes so too (`data/data.py` of LUSSeg/ImageNet-S), but ships no file that
ties names to folders. Two pairs of classes share a name: crane (bird and machine) and maillot.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

_LINES = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
NAMES = MappingProxyType(dict(line.split(" ", 1) for line in _LINES))
