"""What the nano recipe's lessons ask: drills, lookups, facts told in words, pictures."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
from places import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "nano"))

from drill import draw_drill, drill_turn
from lookup import ANY, EASY, LOOKUPS, MARKED, SEVERAL, Asked, Lookup, asked_at, draw_lookup
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
    rng = np.random.default_rng(0)
    turns = [drill_turn(rng, ease=i % 2) for i in range(2000)]
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


def test_a_lookup_asks_one_kind_of_question_about_several_objects() -> None:
    assert len(set(LOOKUPS)) == len(LOOKUPS) == 18
    for x in LOOKUPS:
        lessons = [draw_lookup("train", i, Asked(x)) for i in range(12)]
        kinds = {t.kind for lesson in lessons for t in lesson.turns}
        wanted = x.asked.removeprefix("mark_")
        if wanted == "attribute":
            assert kinds <= {"colour", "shape", "texture"}
        else:
            assert kinds == {wanted}
        if x.asked in MARKED:
            assert all("letter" in t.question for lesson in lessons for t in lesson.turns)
        assert all(bool(lesson.raster) == x.raster != bool(lesson.facts) for lesson in lessons)
        assert all(len(shown.scene.things) > 1 for lesson in lessons for shown in lesson.raster)
        [turn] = draw_lookup("train", 3, Asked(x, choices=1.0)).turns
        assert turn.kind.startswith("choice_")


def test_lookups_begin_with_easy_ones() -> None:
    first, then = (
        [asked_at(step, 1000) for step in steps] for steps in (range(1000), range(1000, 3000))
    )
    for asked, retold, single in ((first, EASY, (EASY, 0.0)), (then, ANY, (SEVERAL, 0.4))):
        drills = asked.count(None)
        told = [x for x in asked if x is not None and x.lookup.asked == "retold"]
        others = [x for x in asked if x is not None and x.lookup.asked != "retold"]
        assert 0.2 < drills / len(asked) < 0.3 and 0.44 < len(told) / len(asked) < 0.54
        assert {x.objects for x in told} == {retold} and len({x.lookup for x in told}) == 2
        assert {(x.objects, x.choices) for x in others} == {single}
        assert {x.lookup for x in others} == {*LOOKUPS}


def test_what_is_retold_is_what_the_facts_say() -> None:
    """The same words for every object and letter, in another order."""
    for i in range(40):
        lesson = draw_lookup("train", i, Asked(Lookup(False, "retold")))
        told = lesson.facts.removeprefix("The image: ").replace(" at the ", " ")
        [turn] = lesson.turns
        assert _parts(told) == _parts(turn.answer)


def _parts(told: str) -> list[list[str]]:
    """The words of every part but the ground's own, in order of the alphabet."""
    parts = [part.split() for part in told.rstrip(".").split(",")]
    return sorted(sorted(word for word in part if word != "ground") for part in parts)


def test_told_lessons_ask_as_many_questions_and_choices_as_they_are_told() -> None:
    for turns, choices in ((1, 1.0), (4, 0.0)):
        lessons = [
            draw_told("train", i, raster=i % 2 == 0, turns=turns, choices=choices)
            for i in range(60)
        ]
        assert {len(x.turns) for x in lessons} == {turns}
        kinds = [t.kind for x in lessons for t in x.turns]
        chosen = sum("choice_" in k for k in kinds)  # which of several images, often by letter
        assert chosen > 0.7 * len(kinds) if choices else chosen < 0.2 * len(kinds)


def test_no_lesson_asks_a_perception_question() -> None:
    lessons = [draw_told("train", i, raster=i % 2 == 0, turns=6) for i in range(200)]
    lessons += [draw_lesson("train", i, images=1 + i % 3, ease=0, turns=6) for i in range(60)]
    lessons += [draw_drill("train", i, ease=0) for i in range(200)]
    lessons += [draw_lookup("train", i, Asked(x, choices=0.5)) for x in LOOKUPS for i in range(20)]
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
