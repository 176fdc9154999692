"""Count the words that a nano meets: `words.json`, from which its tokenizer is made.

    python recipes/nano/words.py

Run once, so that new sentences never change a vocabulary. The words of the perception questions are
among them: they get whole tokens too, although nothing is trained on them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path

from told import draw_told

from kvfix.data.scenes.questions import SKILLS, scene_question

WORDS = Path(__file__).with_name("words.json")
CHAT = "<|im_start|>user\nassistant header id of text begin end eot image\n\n|><|"
PIECES = re.compile(r" ?\w+|\s|[^\w\s]")  # words with the space before them


def main() -> None:
    """Write the counts of 600 conversations, 30 questions a skill, and the marks of chat."""
    texts = [CHAT] * 100
    for i in range(600):
        lesson = draw_told("train", i, raster=False, turns=7)
        texts += [lesson.facts, *chain(*((t.question, t.answer) for t in lesson.turns))]
    for skill in SKILLS:
        texts += [scene_question("train", skill, i).prompt for i in range(30)]
    counts = Counter(chain(*(PIECES.findall(text) for text in texts)))
    rows = ",\n".join(f"{json.dumps(w)}: {n}" for w, n in sorted(counts.items()))
    WORDS.write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
