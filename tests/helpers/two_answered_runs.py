"""Two planted runs with questions that open: some fixed, some broken, one subtask too small."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from two_runs import curve, probe_run, save

from kvfix.eval.mcq.pictures import picture_file
from kvfix.runs.rows import AnswerRow, to_json

# A subtask's questions before and after: 1 right, 0 wrong.
PLANTED = {
    "Jigsaw": ("0" * 20 + "1" * 20, "1" * 18 + "00" + "1" * 19 + "0"),
    "Relative_Depth": ("01" * 20, "01" * 18 + "1010"),
    "Spatial_Relation": ("000", "111"),
}


def two_runs(folder: Path) -> tuple[Path, Path]:
    """The folders of the runs before and after."""
    sides = []
    for k, side in enumerate(("before", "after")):
        run = folder / side
        data = [
            {"dataset": "scenes", "task": task, "split": "test", "n": 9, "sha256": "d" * 64}
            for task in ("mcq", "semantic_correspondence")
        ]
        lift = {"value": 0.1 * k}
        save(run, probe_run(curve(3, lift=lift, seed=k)), data=data, kind="eval", results=[])
        rows = [_answer(t, i, mark) for t, m in PLANTED.items() for i, mark in enumerate(m[k])]
        lines = "".join(json.dumps(to_json(row)) + "\n" for row in rows)
        (run / "samples" / "mcq.jsonl").write_text(lines)
        for row in rows:
            path = run / picture_file("scenes", row.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (240, 90), (40 * k, 90, 160)).save(path, format="webp")
        sides.append(run)
    return sides[0], sides[1]


def _answer(subtask: str, number: int, mark: str) -> AnswerRow:
    name = f"{subtask}_{number}"
    letter = "B" if mark == "1" else "A"
    return AnswerRow(
        id=name,
        cluster=name,
        task="mcq",
        subtask=subtask,
        dataset="scenes",
        correct=int(mark),
        letter=letter,
        answer="B",
        unparsed=False,
        text=f"({letter})",
        question=f"Which of the two is question {number} of {subtask}?",
        options=("the first image", "the second image"),
        logprobs=(-1.0, -2.0),
        images=("a.png",),
    )
