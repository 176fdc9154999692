"""Adapters: the one place that finds, checks and loads them, for every command and for training."""

from kvfix.adapters.base import AdapterWarning, OtherBase, check_base
from kvfix.adapters.folder import Adapter, find
from kvfix.adapters.load import Loaded, load, restore

__all__ = [
    "Adapter",
    "AdapterWarning",
    "Loaded",
    "OtherBase",
    "check_base",
    "find",
    "load",
    "restore",
]
