"""Readouts on hand-made features whose right answer is known, and on features that hold nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dealt import deal_cells, readout
from grids import grid_layout
from PIL import Image
from places import SHARED
from tiny import photo

from kvfix.data.readers.blink import blink_questions
from kvfix.data.scenes.questions import SKILLS, scene_question
from kvfix.data.units import Question
from kvfix.eval.mcq import readouts
from kvfix.eval.mcq.readouts import (
    READOUTS,
    Images,
    Marked,
    Points,
    compared,
    read_out,
    views_of_each,
)
from kvfix.eval.source import MlmSource, View
from kvfix.mlm.load import load_mlm

GRID = (8, 8)
SIDE = 64  # pixels of the blank images
SITES = 3
CORRESPONDENCE = tuple(name for name in READOUTS if name.endswith("Correspondence"))


def image_question(sub_task: str, answer: int, *, images: int = 3, **changes: object) -> Question:
    blank = tuple(Image.new("RGB", (SIDE, SIDE)) for _ in range(images))
    names = ("the second image", "the third image", "the fourth image")[: images - 1]
    question = Question("q", "q", sub_task, blank, "Which one?", names, answer)
    return replace(question, **changes)  # type: ignore[arg-type]


def point_question(
    order: Sequence[int], *, sub_task: str = "Visual_Correspondence", **changes: object
) -> Question:
    """Point A lies at spot `order[0]`, B at `order[1]`; the reference at spot 0 of image 1."""
    spots = [(11.5, 11.5), (51.5, 19.5), (19.5, 43.5), (43.5, 51.5)]  # centres of cells
    marks = tuple(("ABCD"[k], *spots[spot]) for k, spot in enumerate(order))
    blank = Image.new("RGB", (SIDE, SIDE))
    choices = tuple(f"Point {label}" for label, _, _ in marks)
    answer = list(order).index(0)
    points = ((("REF", *spots[0]),), marks)
    question = Question("q", "q", sub_task, (blank, blank), "Which?", choices, answer, points)
    return replace(question, **changes)  # type: ignore[arg-type]


def views_of(features: Sequence[torch.Tensor]) -> list[View]:
    layout = grid_layout((SIDE, SIDE), GRID)
    return [View({"value": f_SHWC}, layout) for f_SHWC in features]


def noise(n: int, generator: torch.Generator, channels: int = 6) -> list[torch.Tensor]:
    shape = (SITES, *GRID, channels)
    return [torch.randn(shape, generator=generator) for _ in range(n)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def textured(shape: torch.Tensor, seed: int) -> torch.Tensor:
    """Cells of one covariance: each site's own mixture of independent channels."""
    [plain] = noise(1, generator(seed))
    return plain @ shape


@pytest.mark.parametrize("answer", [0, 1, 2])
def test_style_is_the_covariance_of_channels_and_not_their_place(answer: int) -> None:
    mixtures = torch.randn(4, SITES, 1, 6, 6, generator=generator(7))
    shown = [textured(mixtures[0], 1), *(textured(mixtures[i], 1 + i) for i in (1, 2, 3))]
    shown[1 + answer] = textured(mixtures[0], 9)  # other cells, the same mixture
    got = readout(image_question("Art_Style", answer, images=4), views_of(shown), "value")
    assert got is not None
    assert got.choice_S.tolist() == [answer] * SITES
    assert (got.margin_S > 0).all() and got.chance == pytest.approx(1 / 3)


def test_gram_distance_by_hand() -> None:
    """Two cells of two channels: G = F^T F / 2."""
    layout = grid_layout((SIDE, SIDE), (1, 2))
    cells = [
        [[1.0, 0.0], [0.0, 1.0]],  # G = diag(1/2, 1/2)
        [[2.0, 0.0], [0.0, 0.0]],  # G = diag(2, 0): distance sqrt(9/4 + 1/4)
        [[1.0, 0.0], [1.0, 0.0]],  # G = diag(1, 0): distance sqrt(1/4 + 1/4)
    ]
    views = [View({"value": torch.tensor(c)[None, None]}, layout) for c in cells]
    got = readout(image_question("Art_Style", 1), views, "value")
    assert got is not None and got.choice_S.tolist() == [1]
    far, near = 2.5**0.5, 0.5**0.5
    assert got.margin_S == pytest.approx((far - near) / (far + near))


def test_a_gram_matrix_does_not_grow_with_the_number_of_cells() -> None:
    """An option shown on four times the cells is as far as on one grid."""
    [cells] = noise(1, generator(2))
    other = 1.2 * cells
    large = cells.repeat(1, 2, 2, 1)
    layouts = [grid_layout((SIDE, SIDE), hw) for hw in (GRID, GRID, (16, 16))]
    views = [
        View({"value": f}, layout) for f, layout in zip((cells, other, large), layouts, strict=True)
    ]
    got = readout(image_question("Art_Style", 1), views, "value")
    assert got is not None and got.choice_S.tolist() == [1] * SITES


@pytest.mark.parametrize("answer", [0, 1])
def test_similarity_is_the_direction_of_the_mean(answer: int) -> None:
    reference, wrong = noise(2, generator(3))
    right = 5 * reference.flip(1, 2)  # the same cells elsewhere, at another scale
    options = [right, wrong] if answer == 0 else [wrong, right]
    got = readout(
        image_question("Visual_Similarity", answer), views_of([reference, *options]), "value"
    )
    assert got is not None and got.choice_S.tolist() == [answer] * SITES
    mean_0, mean_w = reference.mean((1, 2)), wrong.mean((1, 2))
    cosine_S = torch.nn.functional.cosine_similarity(mean_0, mean_w, dim=-1)
    assert got.margin_S == pytest.approx((1 - cosine_S).numpy(), abs=1e-6)


@pytest.mark.parametrize("sub_task", CORRESPONDENCE)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 1, 3, 0), (3, 0, 1, 2)])
def test_the_point_of_the_same_features_is_chosen(sub_task: str, order: Sequence[int]) -> None:
    [source] = noise(1, generator(4))
    question = point_question(order, sub_task=sub_task)
    got = readout(question, views_of([source, 3 * source]), "value")
    assert got is not None
    assert got.choice_S.tolist() == [question.answer] * SITES
    assert (got.margin_S > 0.1).all() and got.chance == 0.25


def test_points_number_pixels_by_their_centres() -> None:
    """The centre of cell (1, 1) of 8 x 8 cells is pixel 11.5, not 12."""
    [source] = noise(1, generator(5))
    target = torch.zeros_like(source)
    target[:, 1, 1] = source[:, 1, 1]
    target[:, 2:, 2:] = source[:, 1, 1].flip(-1)[:, None, None]  # what a shift would mix in
    got = readout(point_question((0, 3)), views_of([source, target]), "value")
    assert got is not None and got.choice_S.tolist() == [0] * SITES
    at = readouts.point_scores(
        Marked(views_of([source, target]), compared(point_question((0, 3)))),  # type: ignore[arg-type]
        "value",
    )
    assert at[:, 0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("choices", "options"),
    [
        (("the second image", "the third image"), (1, 2)),
        (("the third image", "the second image"), (2, 1)),
        (("(A) the second image", "(B) the third image"), (1, 2)),
        (("Image 3", "Image 2"), (2, 1)),
        (("The second image.", "third picture"), (1, 2)),
    ],
)
def test_options_name_images(choices: tuple[str, ...], options: tuple[int, ...]) -> None:
    asked = compared(image_question("Visual_Similarity", 0, choices=choices))
    assert asked == Images(options)


@pytest.mark.parametrize(
    "choices",
    [
        ("yes", "no"),
        ("the second image", "neither"),
        ("the first image", "the third image"),  # the reference itself
        ("the second image", "the second image"),
        ("the third image", "the fourth image"),  # there are three
        ("A", "B"),
    ],
)
def test_options_that_name_no_images_have_no_readout(choices: tuple[str, ...]) -> None:
    question = image_question("Art_Style", 0, choices=choices)
    assert isinstance(compared(question), str)
    assert readout(question, views_of(noise(3, generator())), "value") is None


@pytest.mark.parametrize(
    "choices", [("Point B", "Point A"), ("B", "A"), ("(A) Point B", "(B) Point A"), ("b", "a")]
)
def test_options_name_points_whatever_their_order(choices: tuple[str, ...]) -> None:
    asked = compared(point_question((0, 1), choices=choices))
    assert isinstance(asked, Points) and not asked.found
    assert asked.options_K2.tolist() == [[51.5, 19.5], [11.5, 11.5]]
    assert asked.reference_12.tolist() == [[11.5, 11.5]]


def test_questions_without_readable_points_say_why() -> None:
    whole = point_question((0, 1))
    reasons = {
        compared(replace(whole, choices=("Point A", "Point C"))),
        compared(replace(whole, choices=("Point A", "neither"))),
        compared(replace(whole, images=whole.images[:1], points=())),
        compared(replace(whole, points=())),  # and no marker is drawn
        compared(replace(whole, sub_task="Counting")),
    }
    assert len(reasons) == 5 and all(isinstance(why, str) for why in reasons)


def test_markers_stand_in_for_points(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = point_question((1, 0))
    drawn = {"REF": (11.5, 11.5), "A": (51.5, 19.5), "B": (11.5, 11.5)}
    monkeypatch.setattr(
        readouts, "find_markers", lambda image, *, labels: {label: drawn[label] for label in labels}
    )
    [source] = noise(1, generator(6))
    views = views_of([source, source])
    asked = compared(replace(whole, points=()))
    assert isinstance(asked, Points) and asked.found
    found = readout(replace(whole, points=()), views, "value")
    given = readout(whole, views, "value")
    assert found is not None and given is not None
    assert np.array_equal(found.choice_S, given.choice_S)
    assert found.choice_S.tolist() == [1] * SITES


def test_every_scene_question_of_a_readable_skill_has_a_readout() -> None:
    for skill in SKILLS:
        asked = compared(scene_question("val", skill, 0))
        assert isinstance(asked, str) == (skill not in READOUTS), skill


@pytest.mark.shared
def test_blink_form_questions_have_readouts() -> None:
    """By their options and their drawn markers alone."""
    folder = SHARED / "data" / "BLINK"
    if not folder.is_dir():
        pytest.fail(f"no photos in {folder}; set KVFIX_SHARED")
    units = blink_questions(folder)
    kinds: dict[str, list[object]] = {}
    for i, name in enumerate(units.ids):
        if any(task in name for task in READOUTS) and name.endswith("3"):
            question = units.load(i)
            assert isinstance(question, Question) and not question.points
            kinds.setdefault(question.sub_task, []).append(compared(question))
    assert kinds["Art_Style"] == kinds["Visual_Similarity"] == [Images((1, 2))] * 4
    points = kinds["Visual_Correspondence"]
    found = [asked for asked in points if isinstance(asked, Points)]
    assert len(points) == 4 and len(found) >= 3, len(found)
    assert all(asked.found for asked in found)
    assert all("marker" in str(asked) for asked in points if isinstance(asked, str))


def cases(sub_task: str, seed: int) -> tuple[Question, list[View]]:
    """A question whose readout is right, its answer anywhere."""
    draw = np.random.default_rng([seed, len(sub_task)])
    made = generator(seed)
    if sub_task in CORRESPONDENCE:
        [source] = noise(1, made)
        order = [int(i) for i in draw.permutation(4)]
        return point_question(order, sub_task=sub_task), views_of([source, source])
    reference, wrong = noise(2, made)
    answer = int(draw.integers(2))
    wrong = 2 * wrong + 1
    shown = [reference, reference.flip(1), wrong] if answer == 0 else [reference, wrong, reference]
    return image_question(sub_task, answer), views_of(shown)


@pytest.mark.parametrize("sub_task", READOUTS)
def test_dealt_cells_are_read_out_at_chance(sub_task: str) -> None:
    """All sites are dealt alike, so questions are what is counted: 4 standard errors."""
    n, right, dealt = 200, 0, 0
    for seed in range(n):
        question, views = cases(sub_task, seed)
        asked = compared(question)
        assert not isinstance(asked, str)
        marked = Marked(views, asked)
        right += int(read_out(question, marked, "value").choice_S[0] == question.answer)
        control = deal_cells(marked, generator(10_000 + seed))
        got = read_out(question, control, "value")
        dealt += int(got.choice_S[0] == question.answer)
    assert right == n
    assert abs(dealt / n - got.chance) <= 4 * np.sqrt(got.chance * (1 - got.chance) / n), dealt


def test_dealing_keeps_every_cell_once() -> None:
    question, views = cases("Art_Style", 3)
    asked = compared(question)
    assert not isinstance(asked, str)
    dealt = deal_cells(Marked(views, asked), generator(1))
    before = torch.cat([v.features["value"].flatten(1, 2) for v in views], 1)
    after = torch.cat([v.features["value"].flatten(1, 2) for v in dealt.views], 1)
    assert not torch.equal(before, after)
    assert torch.equal(before.sort(1).values, after.sort(1).values)


def test_constant_features_take_the_first_option_by_no_margin() -> None:
    flat = [torch.ones(SITES, *GRID, 6) for _ in range(3)]
    for sub_task in ("Art_Style", "Visual_Similarity"):
        got = readout(image_question(sub_task, 1), views_of(flat), "value")
        assert got is not None
        assert got.choice_S.tolist() == [0] * SITES and not got.margin_S.any()


def test_a_feature_that_is_not_finite_is_refused() -> None:
    question, views = cases("Visual_Similarity", 0)
    views[1].features["value"][1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        readout(question, views, "value")


def test_questions_that_share_passes_are_read_as_each_is_alone(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MlmSource(load_mlm(str(checkpoint("llava")), device="cpu"), kinds=("value",))
    sizes = [[48] * 3, [48] * 3, [64] * 3, [48, 64, 48], [48] * 3]
    asked = [
        replace(
            image_question("Art_Style", 0),
            images=tuple(photo(n, n, seed=5 * k + i) for i, n in enumerate(of)),
        )
        for k, of in enumerate(sizes)
    ]
    asked.insert(1, scene_question("val", "Counting", 0))
    alone = [next(views_of_each([question], source)) for question in asked]
    passes: list[int] = []
    views_of = MlmSource.views

    def counted(self: MlmSource, images: Sequence[Image.Image]) -> Iterator[View]:
        passes.append(len(images))
        return views_of(self, images)

    monkeypatch.setattr(MlmSource, "views", counted)
    together = list(views_of_each(asked, source))
    assert passes == [6, 3, 3, 3]  # images of one size, but for those of the mixed question
    assert together[1] == alone[1] == "the sub-task has no readout"
    for one, many in zip(alone, together, strict=True):
        if isinstance(one, Marked):
            for a, b in zip(views(one), views(many), strict=True):
                same = torch.allclose(a.features["value"], b.features["value"], atol=1e-5)
                assert same and a.layout.grid_hw == b.layout.grid_hw


def views(marked: Marked | str) -> list[View]:
    assert isinstance(marked, Marked)
    return marked.views


class Refusing:
    """A source that must not be asked."""

    def sites(self, kind: str) -> list:
        raise AssertionError

    def views(self, images: Sequence[Image.Image]) -> Iterator[View]:
        raise AssertionError

    def spoken(self, image: Image.Image, text: str) -> tuple[View, dict[str, torch.Tensor]]:
        raise AssertionError


def test_a_question_without_readout_is_not_read() -> None:
    why = next(views_of_each([scene_question("val", "Counting", 0)], Refusing()))
    assert why == "the sub-task has no readout"
