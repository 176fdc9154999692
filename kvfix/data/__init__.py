"""Where units come from: procedural scenes, and one reader a benchmark.

`load_units(["scenes", "davis2017=DIR"])` gives the sets that probes score. Importing this package
imports neither torch nor datasets.
"""

from kvfix.data.catalog import CATALOG, check, describe, load_units
from kvfix.data.scenes.units import questions_dataset, scenes_dataset
from kvfix.data.training import Conversation, Conversations, read_conversations
from kvfix.data.units import (
    VOID,
    BadUnit,
    Clip,
    Episode,
    Group,
    Pair,
    Question,
    Sentence,
    Unit,
    UnitSet,
)

__all__ = [
    "CATALOG",
    "VOID",
    "BadUnit",
    "Clip",
    "Conversation",
    "Conversations",
    "Episode",
    "Group",
    "Pair",
    "Question",
    "Sentence",
    "Unit",
    "UnitSet",
    "check",
    "describe",
    "load_units",
    "questions_dataset",
    "read_conversations",
    "scenes_dataset",
]
