"""Training data as people have it: one file per form, all read into conversations about photos.

`read_conversations` opens a file, a folder or a hub id; `kvfix.data.training.forms` is the table of
forms.
"""

from kvfix.data.training.conversations import (
    MOST_BAD,
    BadLine,
    Conversations,
    read_conversations,
)
from kvfix.data.training.record import PLACEHOLDER, Conversation, Match, Message, RleMask

__all__ = [
    "MOST_BAD",
    "PLACEHOLDER",
    "BadLine",
    "Conversation",
    "Conversations",
    "Match",
    "Message",
    "RleMask",
    "read_conversations",
]
