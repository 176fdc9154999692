"""What a repair learns from: scenes and JSON lines as examples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import ExifTags, Image
from talks import HEIGHT, WIDTH, box, runs, write_talks

from kvfix.config import load_config
from kvfix.data.pictures import read as pictures
from kvfix.data.scenes.questions import SKILLS, scene_question
from kvfix.data.training.dataset import Conversations, read_conversations
from kvfix.data.training.examples import (
    NO_OUTPUT,
    Example,
    Turn,
    conversation_examples,
    from_conversation,
    from_question,
    named_mask,
    scene_examples,
)
from kvfix.data.training.mix import SceneMix, Shares, Skills

MIX = SceneMix(
    Shares(question=9), Skills(Visual_Similarity=12, Semantic_Correspondence=0, Relative_Depth=0)
)


@pytest.fixture(scope="module")
def scenes() -> list[Example]:
    """Ten rounds of the mix."""
    return list(scene_examples("train", 10 * len(MIX.round), MIX))


def same(a: Example, b: Example) -> bool:
    """Texts, pixels, masks and points."""
    return (
        (a.id, a.turns) == (b.id, b.turns)
        and [i.tobytes() for i in a.images] == [i.tobytes() for i in b.images]
        and [m.mask_HW.tobytes() for m in a.masks] == [m.mask_HW.tobytes() for m in b.masks]
        and [m.a_K2.tobytes() for m in a.matches] == [m.a_K2.tobytes() for m in b.matches]
    )


def test_an_index_always_gives_the_same_example(scenes) -> None:
    again = scene_examples("train", 5, MIX)  # how many are asked for moves none
    assert all(same(again[i], scenes[i]) for i in (4, 2, 0))
    assert same(scene_examples("train", 12, MIX)[11], scenes[11])
    assert not same(scene_examples("val", 5, MIX)[2], scenes[2])
    assert len({example.id for example in scenes}) == len(scenes)


def test_held_out_skills_never_appear(scenes) -> None:
    asked = [e.question.sub_task for e in scenes if e.question is not None]
    assert len(asked) == 10 * MIX.round.count("question")
    assert set(asked) == set(MIX.asked) == set(SKILLS) - set(MIX.held_out)
    assert {"Semantic_Correspondence", "Relative_Depth"} == set(MIX.held_out)
    for skill, times in vars(MIX.questions).items():
        fair = len(asked) * times / len(MIX.asked)
        assert abs(asked.count(skill) - fair) <= times, skill
    none = dict.fromkeys(SKILLS, 0)
    one = scene_examples("train", 14, SceneMix(questions=Skills(**none | {"Counting": 1})))
    assert {e.question.sub_task for e in one if e.question is not None} == {"Counting"}


def test_every_kind_of_question_has_a_share_and_a_mix_of_nothing_is_refused() -> None:
    assert list(vars(Skills())) == list(SKILLS)
    for override, says in (
        ("questions.Chess=1", "config key 'questions.Chess' is unknown"),
        ("questions.Counting=-1", "'questions.Counting': expected a whole number of 0 or more"),
        ("examples={question: 0, talk: 0, named: 0, pair: 0}", "expected a share above 0"),
        (f"questions={dict.fromkeys(SKILLS, 0)}", "expected a share above 0"),
    ):
        with pytest.raises(ValueError, match=says):
            load_config(SceneMix, None, [override])


def test_questions_of_different_rounds_differ(scenes) -> None:
    ids = [e.question.id for e in scenes if e.question is not None]
    assert len(set(ids)) == len(ids)


def kind(example: Example) -> str:
    """By what it holds."""
    if example.question is not None:
        return "question"
    if example.turns[0].answer:
        return "talk"
    return "named" if example.masks else "pair"


def test_scenes_of_every_kind_hold_what_their_losses_need(scenes) -> None:
    for example in scenes:
        assert sum(part is None for turn in example.turns for part in turn.user) == len(
            example.images
        )
    assert [kind(example) for example in scenes] == 10 * list(MIX.round)
    for example in scenes:
        for mask in example.masks:
            assert mask.named and mask.mask_HW.any() and 0 <= mask.category < 8
            assert mask.mask_HW.shape == example.images[0].size[::-1]
            assert not example.turns[0].answer  # the text ends with the name
        for match in example.matches:
            size = np.array(example.images[1].size)
            assert len(match.a_K2) and (match.b_K2 >= 0).all() and (match.b_K2 <= size - 1).all()
        if len(example.turns) > 1:
            assert all(turn.answer for turn in example.turns)


def colours(example: Example, image: int, xy_K2: np.ndarray) -> np.ndarray:
    """RGB at points, bilinear; centres at integers."""
    rgb_HWC = np.asarray(example.images[image], float)
    x, y = np.clip(xy_K2, 0, np.array(rgb_HWC.shape[1::-1]) - 1.001).T
    left, top = np.floor([x, y]).astype(int)
    u, v = (x - left)[:, None], (y - top)[:, None]
    above = rgb_HWC[top, left] * (1 - u) + rgb_HWC[top, left + 1] * u
    below = rgb_HWC[top + 1, left] * (1 - u) + rgb_HWC[top + 1, left + 1] * u
    return above * (1 - v) + below * v


def test_points_of_a_warped_pair_show_the_same_pixels(scenes) -> None:
    warped = [e for e in scenes if e.matches and len(e.matches[0].a_K2) > 8]
    assert len(warped) > 2
    right, swapped, shifted = [], [], []
    for example in warped:
        [match] = example.matches
        there = colours(example, 1, match.b_K2)
        right.append(np.abs(colours(example, 0, match.a_K2) - there).mean(1))
        swapped.append(np.abs(colours(example, 0, match.b_K2) - there).mean(1))
        shifted.append(np.abs(colours(example, 0, match.a_K2 + 1) - there).mean(1))
    found, *others = (np.concatenate(x) for x in (right, swapped, shifted))
    # Of 255; resampling blurs edges. One pixel beside makes a mean difference of 4.6.
    assert found.mean() < 2
    for other in others:
        assert other.mean() > 2 * found.mean()


def test_pairs_are_views_and_objects(scenes) -> None:
    counts = [len(e.matches[0].a_K2) for e in scenes if e.matches]
    assert min(counts) <= 8 < max(counts)  # named parts of an object; points strewn over a scene


def test_a_question_is_asked_as_the_eval_asks_it() -> None:
    question = scene_question("train", "Visual_Similarity", 0)
    example = from_question(question)
    assert example.images == question.images and len(example.turns) == 1
    assert example.turns[0] == Turn((None, None, None, question.prompt), question.letter)


# --- JSON lines -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Conversations:
    """One line of each kind."""
    return read_conversations(write_talks(tmp_path_factory.mktemp("talks"), 4))


def test_lines_become_examples_and_their_labels_too(lines) -> None:
    examples = conversation_examples(lines)
    assert [e.id for e in examples] == ["t0", "i1", "i1/0/cat", "i1/0/dog", "p2", "c3"]
    text, one, cat, _, two, choice = examples
    assert text.images == () and text.turns == (Turn(("Say a number.",), "It is 0."),)
    assert one.turns == (
        Turn((None, "What is it?"), "A cat."),
        Turn(("And else?",), "Dog 1."),
    )
    assert cat.turns == (Turn((None, "cat"), ""),) and cat.masks[0].named
    assert cat.masks[0].category == NO_OUTPUT  # no head learns a single label
    assert two.turns == (Turn((None, None, "The same?"), "No, it is not."),)
    [match] = two.matches
    assert (match.image_a, match.image_b) == (0, 1)
    assert match.a_K2.tolist() == [list(m.a) for m in lines[2].points]
    assert match.b_K2.tolist() == [list(m.b) for m in lines[2].points]
    assert choice.question is not None and choice.question.sub_task == "Visual_Similarity"
    assert choice.question.choices == ("the second image", "the third image")
    assert choice.question.answer == 1 and choice.turns[0].answer == choice.question.letter
    assert [e.question for e in (text, one, cat, two)] == [None] * 4


def test_masks_of_an_image_are_joined(lines) -> None:
    cat, dog = (mask.decode() for mask in lines[1].masks)
    assert (cat != dog).any()
    [joined] = from_conversation(lines[1]).masks
    assert (joined.mask_HW == np.maximum(cat, dog)).all()
    assert joined.category == 0 and not joined.named and joined.image == 0
    [alone] = named_mask(lines[1], 0, "dog").masks
    assert (alone.mask_HW == dog).all()


def write(folder: Path, **row: object) -> Conversations:
    for i in range(3):
        tiny.photo(HEIGHT, WIDTH, seed=i).save(folder / f"{i}.png")
    (folder / "x.jsonl").write_text(json.dumps({"id": "x"} | row))
    return read_conversations(folder / "x.jsonl")


def test_masks_of_two_images_and_of_a_label_in_parts(tmp_path) -> None:
    masks = [np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(3)]
    masks[0][:9] = masks[1][20:30] = masks[2][:, 50:] = 1
    lines = write(
        tmp_path,
        images=["0.png", "1.png"],
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "First <image> and"},
            {"role": "user", "content": "then <image>"},
            {"role": "assistant", "content": "Good."},
        ],
        masks=[
            {"image": image, "label": "sky", "size": [HEIGHT, WIDTH], "counts": runs(mask)}
            for image, mask in zip((1, 1, 0), masks, strict=True)
        ],
    )
    whole, first, second = conversation_examples(lines)
    assert whole.turns == (Turn(("First", None, "and\nthen", None), "Good."),)
    assert whole.system == "Be brief."
    assert [m.image for m in whole.masks] == [0, 1]
    assert (whole.masks[0].mask_HW == masks[2]).all()
    assert (whole.masks[1].mask_HW == masks[0] | masks[1]).all()
    named = {e.id: e for e in (first, second)}
    assert named.keys() == {"x/1/sky", "x/0/sky"}
    assert (named["x/1/sky"].masks[0].mask_HW == masks[0] | masks[1]).all()
    assert named["x/1/sky"].images[0].tobytes() == lines[0].photos[1].read().image.tobytes()


def test_masks_and_points_turn_with_their_photo_which_is_opened_once(tmp_path, monkeypatch) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:9, 5:] = 1
    lines = write(
        tmp_path,
        images=["0.png"],
        messages=[
            {"role": "user", "content": "<image>x"},
            {"role": "assistant", "content": "y"},
        ],
        masks=[{"image": 0, "label": "sky", "size": [HEIGHT, WIDTH], "counts": runs(mask)}] * 2,
        points=[{"image_a": 0, "image_b": 0, "a": [0, 0], "b": [3, 2]}],
    )
    examples = conversation_examples(lines)
    turn = Image.Exif()
    turn[ExifTags.Base.Orientation] = 6  # shown turned clockwise by a quarter
    tiny.photo(HEIGHT, WIDTH).save(tmp_path / "0.png", exif=turn)
    opened: list[Path] = []
    real = pictures._stream
    monkeypatch.setattr(pictures, "_stream", lambda *given: opened.append(given[0]) or real(*given))
    whole, named = examples
    assert opened == [tmp_path / "0.png"] * 2
    for example in (whole, named):
        assert example.images[0].size == (HEIGHT, WIDTH)
        assert (example.masks[0].mask_HW == np.rot90(mask, -1)).all()
    [match] = whole.matches
    assert match.a_K2.tolist() == [[HEIGHT - 1, 0]] and match.b_K2.tolist() == [[HEIGHT - 3, 3]]


def test_points_are_kept_apart_by_pair(tmp_path) -> None:
    pairs = [(0, 2), (0, 1), (0, 2)]
    points = [
        {"image_a": a, "image_b": b, "a": [i, 0], "b": [0, i]} for i, (a, b) in enumerate(pairs)
    ]
    messages = [
        {"role": "user", "content": "<image><image><image>x"},
        {"role": "assistant", "content": "y"},
    ]
    images = ["0.png", "1.png", "2.png"]
    [example] = conversation_examples(
        write(tmp_path, images=images, messages=messages, points=points)
    )
    found = {(m.image_a, m.image_b): (m.a_K2.tolist(), m.b_K2.tolist()) for m in example.matches}
    assert found == {(0, 1): ([[1, 0]], [[0, 1]]), (0, 2): ([[0, 0], [2, 0]], [[0, 0], [0, 2]])}


@pytest.mark.parametrize(
    ("said", "answer", "sub_task"),
    [
        ("<image><image>Which?\n(A) one\n(B) two", "It is (B)", "Counting"),  # more than a letter
        ("<image><image>Which?\n(A) one\n(B) two", "(C)", "Counting"),  # not an option
        ("<image><image>Which?\n(A) one\n(B) two", "(B)", None),
        ("<image>Which <image>?\n(A) one\n(B) two", "(B)", "Counting"),  # images not first
    ],
)
def test_what_is_no_multiple_choice_question_is_none(said, answer, sub_task, tmp_path) -> None:
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    row = {"images": ["0.png", "1.png"], "messages": messages}
    if sub_task:
        row["sub_task"] = sub_task
    [example] = conversation_examples(write(tmp_path, **row))
    assert example.question is None and example.turns[0].answer == answer


def test_runs_of_the_test_file_are_runs_of_its_masks(lines) -> None:
    assert (lines[1].masks[0].decode() == box(np.random.default_rng(1))).all()


def test_an_index_beyond_the_end_is_refused() -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError, match="below 3"):
            scene_examples("train", 3, MIX)[index]
