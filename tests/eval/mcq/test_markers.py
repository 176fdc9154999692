"""Drawn markers: found where they were drawn, or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image, ImageDraw, ImageFont
from places import SHARED
from tiny import photo

from kvfix.data.scenes.questions import scene_question
from kvfix.data.scenes.shapes import mark
from kvfix.eval.mcq.markers import find_markers
from kvfix.eval.mcq.rings import find_rings, redness

BLINK = SHARED / "data" / "BLINK"
RED = (255, 0, 0)
SPOTS = ((40, 60), (190, 50), (60, 180), (170, 170))
# Not one of the fonts that the finder knows.
SERIF = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSerif.ttf")


def drawn(
    labels: str | tuple[str, ...],
    spots: tuple[tuple[int, int], ...] = SPOTS,
    *,
    scale: int = 1,
    ring: bool = True,
    quality: int = 90,
) -> Image.Image:
    """A photo with a red circle and its label, up and to the right, at each spot, as JPEG."""
    image = photo(224 * scale, 256 * scale, seed=3)
    image = Image.blend(image, Image.new("RGB", image.size, (90, 110, 100)), 0.5)
    draw = ImageDraw.Draw(image)
    radius = 7 * scale
    font = ImageFont.truetype(str(SERIF), 18 * scale)
    for label, (x, y) in zip(labels, spots, strict=False):
        x, y = x * scale, y * scale
        if ring:
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, outline=RED, width=3 * scale)
        draw.text((x + radius, y - 3.5 * radius), label, fill=RED, font=font)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def distance(found: tuple[float, float], truth: tuple[float, float]) -> float:
    return float(np.hypot(found[0] - truth[0], found[1] - truth[1]))


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("labels", ["ABCD", "DBCA", "CADB"])
def test_each_label_is_found_at_its_circle(labels: str, scale: int) -> None:
    found = find_markers(drawn(labels, scale=scale), labels="ABCD")
    assert found is not None and list(found) == list("ABCD")
    for label, (x, y) in zip(labels, SPOTS, strict=True):
        assert distance(found[label], (x * scale, y * scale)) <= 0.5, label


def test_reference_and_pairs_are_found() -> None:
    found = find_markers(drawn(("REF",)), labels=("REF",))
    assert found is not None and distance(found["REF"], SPOTS[0]) <= 0.5
    found = find_markers(drawn("BA"), labels="AB")
    assert found is not None
    assert distance(found["A"], SPOTS[1]) <= 0.5 and distance(found["B"], SPOTS[0]) <= 0.5


def test_what_is_not_there_is_not_found() -> None:
    assert find_markers(drawn(""), labels=("REF",)) is None
    assert find_markers(drawn("ABCD", ring=False), labels="ABCD") is None  # letters have holes
    assert find_markers(drawn("ABC"), labels="ABCD") is None
    assert find_markers(drawn(("",)), labels=("REF",)) is None
    assert find_markers(drawn(("", "", "", "")), labels="ABCD") is None


def test_labels_that_can_be_read_in_two_ways_are_not_read() -> None:
    assert len(find_rings(redness(drawn("AA")))) == 2
    assert find_markers(drawn("AA"), labels="AB") is None
    assert find_markers(drawn("BB"), labels="AB") is None
    assert find_markers(drawn("ABCC"), labels="ABCD") is None


def test_red_of_the_photo_is_no_marker() -> None:
    image = drawn("ABCD")
    draw = ImageDraw.Draw(image)
    draw.rectangle((100, 90, 130, 120), outline=RED, width=3)
    draw.ellipse((215, 100, 240, 125), fill=RED)
    found = find_markers(image, labels="ABCD")
    assert found is not None
    for label, spot in zip("ABCD", SPOTS, strict=True):
        assert distance(found[label], spot) <= 0.5


@pytest.mark.parametrize("labels", [(), ("A", "A")])
def test_labels_are_wanted_each_once(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="labels, each once"):
        find_markers(drawn("AB"), labels=labels)


@pytest.mark.parametrize("skill", ["Visual_Correspondence", "Semantic_Correspondence"])
def test_markers_of_the_scenes_are_found_where_they_are(skill: str) -> None:
    n_found, n = 0, 12
    for i in range(n):
        question = scene_question("val", skill, i)
        for image, marks in zip(question.images, question.points, strict=True):
            found = find_markers(image, labels=[label for label, _, _ in marks])
            if found is not None:
                n_found += 1
                for label, x, y in marks:
                    # PIL draws at whole pixels.
                    assert distance(found[label], (x, y)) <= 1.5, (question.id, label)
    assert n_found >= 0.8 * 2 * n, n_found


def test_marks_drawn_on_one_ground_are_all_found() -> None:
    ground = Image.new("RGB", (160, 160), (70, 120, 90))
    marks = [("C", 30.0, 40.0), ("A", 120.0, 35.0), ("D", 50.0, 120.0), ("B", 110.0, 100.0)]
    found = find_markers(mark(ground, marks), labels="ABCD")
    assert found is not None
    assert all(distance(found[label], (x, y)) <= 1.5 for label, x, y in marks)


class Shown(NamedTuple):
    """One image of a BLINK-form question, and where its markers are."""

    idx: str
    image: Image.Image
    truth: dict[str, tuple[float, float]]


def blink_form(task: str, odd: bool) -> Iterator[Shown]:
    """The marked images of every other question."""
    points = json.loads((BLINK / "points.json").read_text())
    [file] = (BLINK / task).glob("*.parquet")
    for row in pyarrow.parquet.read_table(file).to_pylist():
        if int(row["idx"].rsplit("_", 1)[1]) % 2 != odd:
            continue
        at = points[row["idx"]]
        marked = [{"REF": at["ref"]}] if "ref" in at else []
        marked.append(dict(zip("ABCD", at["points"], strict=False)))
        for number, truth in enumerate(marked, 1):
            image = Image.open(io.BytesIO(row[f"image_{number}"]["bytes"])).convert("RGB")
            yield Shown(row["idx"], image, {k: tuple(xy) for k, xy in truth.items()})


@pytest.mark.shared
@pytest.mark.parametrize(
    ("task", "n_images", "least"), [("Visual_Correspondence", 40, 36), ("Relative_Depth", 20, 14)]
)
def test_markers_of_blink_form_photos(
    task: str, n_images: int, least: int, record_property: Callable
) -> None:
    """On the half of the questions that no threshold was chosen on: nothing found is wrong."""
    if not BLINK.is_dir():
        pytest.fail(f"no photos in {BLINK}; set KVFIX_SHARED")
    images = list(blink_form(task, odd=True))
    assert len(images) == n_images
    errors, n_found = [], 0
    for idx, image, truth in images:
        found = find_markers(image, labels=tuple(truth))
        if found is not None:
            n_found += 1
            errors += [distance(found[label], truth[label]) for label in truth]
            # Circles are drawn at whole pixels: up to 1.4 from the truth before any error.
            assert max(errors) <= 2, idx
    record_property("found", f"{n_found} of {n_images}")
    record_property("median_error", float(np.median(errors)))
    assert n_found >= least, f"found {n_found} of {n_images}"
