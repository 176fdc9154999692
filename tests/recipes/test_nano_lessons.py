"""What the nano recipe's lessons ask: drills, facts told in words, pictures."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
from places import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "nano"))

from drill import draw_drill, draw_listed, draw_recall
from pictures import draw_lesson, draw_marks
from told import draw_told
from turns import lettered

from kvfix.data.scenes.paint import generator, render, sample_scene


def test_the_truth_stands_at_every_letter_equally_often() -> None:
    rng = np.random.default_rng(0)
    turns = [lettered(rng, "x", "q", "red", ("blue", "red", "green", "cyan")) for _ in range(3000)]
    for n in (2, 3, 4):
        answers = [t.answer for t in turns if t.question.count("\n(") == n]
        counts = Counter(answers)
        assert len(counts) == n and min(counts.values()) > 0.85 * len(answers) / n
    for turn in turns[:50]:
        options = dict(line.split(" ", 1) for line in turn.question.split("\n")[2:])
        assert options[turn.answer] == "red" and len(set(options.values())) == len(options)


def test_a_drill_asks_the_letter_or_the_content_of_an_option() -> None:
    turns = [draw_drill("train", i).turns[0] for i in range(2000)]
    letters = Counter(t.answer for t in turns if t.kind == "drill_letter")
    assert set(letters) == {"(A)", "(B)", "(C)", "(D)"}
    assert 0.65 < letters.total() / len(turns) < 0.75
    for turn in turns:
        asked, *lines = turn.question.split("\n")
        options = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines}
        assert len(set(options.values())) == len(lines) >= 2
        if turn.kind == "drill_letter":
            assert asked == f"Which option is {options[turn.answer]}?"
        else:
            assert options[f"({asked[-2]})"] == turn.answer


def test_what_is_recalled_is_every_option_and_its_letter() -> None:
    several = set()
    for i in range(60):
        [turn] = draw_recall("train", i).turns
        options = {
            line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in turn.question.split("\n")[1:]
        }
        told = [part.split("(") for part in turn.answer[1:].split(", ")]
        assert {f"({letter}": option for option, letter in told} == options
        several.add(len(options))
    assert several == {4, 5, 6, 7, 8}


def test_what_is_retold_is_what_the_facts_say() -> None:
    """The same words for every object and letter, in another order."""
    found = 0
    for i in range(80):
        lesson = draw_told("train", i, raster=False, turns=3, retold=1.0)
        told = lesson.facts.removeprefix("The image: ").replace(" at the ", " ")
        for turn in lesson.turns:
            if turn.kind == "retold":
                found += 1
                assert _parts(told) == _parts(turn.answer)
    assert found > 50  # lessons about several images retell nothing


def _parts(told: str) -> list[list[str]]:
    """The words of every part but the ground's own, in order of the alphabet."""
    parts = [part.split() for part in told.rstrip(".").split(",")]
    return sorted(sorted(word for word in part if word != "ground") for part in parts)


def test_told_lessons_begin_with_easy_ones() -> None:
    for easy in (True, False):
        lessons = [draw_told("train", i, raster=True, turns=4, easy=easy) for i in range(80)]
        assert {len(x.turns) for x in lessons} == {4}
        most = max(len(shown.scene.things) for x in lessons for shown in x.raster)
        kinds = [t.kind for x in lessons for t in x.turns]
        chosen = sum("choice_" in k for k in kinds) / len(kinds)
        several = sum(len(x.raster) > 1 for x in lessons)
        assert (most, chosen, several) == (2, 0, 0) if easy else most == 4 and chosen > 0.5
        assert easy or several > 8


def test_a_listed_lesson_asks_for_the_letter_of_every_option() -> None:
    for i in range(40):
        lesson = draw_listed("train", i)
        options = {
            line.split(" ", 1)[1]: line.split(" ", 1)[0] for line in lesson.facts.split("\n")
        }
        asked = {t.question[len("Which option is ") : -1]: t.answer for t in lesson.turns}
        assert asked == options and len(asked) == len(lesson.turns) >= 4


def test_no_lesson_asks_a_perception_question() -> None:
    lessons = [draw_told("train", i, raster=i % 2 == 0, turns=6) for i in range(200)]
    lessons += [draw_lesson("train", i, images=1 + i % 3, ease=0, turns=6) for i in range(60)]
    lessons += [draw_drill("train", i) for i in range(200)]
    lessons += [draw("train", i) for draw in (draw_recall, draw_listed) for i in range(50)]
    asked = " ".join(t.question for x in lessons for t in x.turns)
    for words in ("similar", "same", "closer", "missing", "style", "front", "view", "piece"):
        assert words not in asked


def test_a_letter_lies_on_what_its_question_says() -> None:
    """Of pictures: the colour at a mark, beside its red circle, is that of the object it names."""
    found = 0
    for i in range(40):
        rng = generator("test", i, "marks")
        scene = sample_scene(rng, count=(1, 3), style="flat")
        picture = render(scene)
        shown = draw_marks(rng, scene, picture)
        for (_, x, y), on in zip(shown.marks, shown.on, strict=True):
            at = picture.instance_HW[int(y * 160), int(x * 160)]
            assert at == (0 if on is None else on + 1)
            found += on is not None
    assert found > 20
