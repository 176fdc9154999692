"""Metrics against hand-computed values and an independent reference; void, empties and bounds."""

import numpy as np
import pytest
from grids import square_mask
from scipy import ndimage

from kvfix.eval import metrics
from kvfix.eval.metrics.masks import fold_of
from kvfix.eval.metrics.points import box_size, image_size

HW = (48, 64)


def test_overlap_leaves_void_out_of_both_sides() -> None:
    truth = np.array([[1, 1, 0, 0], [1, 255, 255, 0]], np.uint8)
    predicted = np.array([[1, 0, 1, 0], [1, 1, 0, 0]], np.uint8)
    o = metrics.overlap(predicted, truth)
    assert o == (2, 4, 2, 4)
    assert o.iou == 0.5
    assert o.precision == 4 / 6


def test_overlap_of_nothing_with_nothing_is_one_and_shapes_are_checked() -> None:
    empty = np.zeros((3, 3), np.uint8)
    assert metrics.overlap(empty, empty).iou == 1.0
    assert metrics.overlap(empty, np.full((3, 3), 255, np.uint8)).precision == 1.0
    with pytest.raises(ValueError, match="one shape"):
        metrics.overlap(empty, np.zeros((3, 4), np.uint8))


def test_pascal_fold_pools_per_class_and_counts_absent_classes_zero() -> None:
    overlaps = [
        metrics.Overlap(1, 2, 8, 9),
        metrics.Overlap(9, 10, 0, 1),
        metrics.Overlap(1, 4, 6, 9),
    ]
    # Class 1: (1 + 9) / 12; class 2: 1 / 4; class 3 has no episode; class 9 is of another fold.
    assert metrics.class_miou(overlaps, [1, 1, 2], of=[1, 2, 3]) == pytest.approx(
        (10 / 12 + 1 / 4 + 0) / 3
    )
    assert metrics.class_miou(overlaps, [1, 9, 2], of=[1, 2]) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert metrics.fb_iou(overlaps) == pytest.approx((11 / 16 + 14 / 19) / 2)


def test_pooled_ratio_is_not_a_mean_of_ratios() -> None:
    part, whole = np.array([[1.0, 0], [9.0, 0]]), np.array([[2.0, 0], [10.0, 0]])
    pooled = metrics.pooled_ratio(part, whole)
    assert pooled[0] == pytest.approx(10 / 12)
    assert np.isnan(pooled[1])


# J and F of davis2017-evaluation@ac7c43f (db_eval_iou, db_eval_boundary) on rectangles.
DAVIS_REFERENCE = [
    # image, truth (top, left, height, width), moved by (down, right), J, F
    (HW, (10, 10, 20, 30), (0, 0), 1.0, 1.0),
    (HW, (10, 10, 20, 30), (1, 0), 0.9047619047619048, 1.0),
    (HW, (10, 10, 20, 30), (3, 2), 0.6574585635359116, 0.06),
    ((480, 854), (100, 100, 200, 300), (3, 4), 0.9452729866424588, 1.0),
    ((480, 854), (100, 100, 200, 300), (9, 12), 0.8463810930576071, 0.034),
    (HW, (0, 0, 48, 64), (0, 0), 1.0, 1.0),
]


@pytest.mark.parametrize(("size", "rectangle", "moved", "j", "f"), DAVIS_REFERENCE)
def test_davis_j_and_f_equal_the_reference(
    size: tuple[int, int],
    rectangle: tuple[int, int, int, int],
    moved: tuple[int, int],
    j: float,
    f: float,
) -> None:
    top, left, height, width = rectangle
    truth = square_mask(size, *rectangle) > 0
    predicted = square_mask(size, top + moved[0], left + moved[1], height, width) > 0
    assert metrics.davis_j(predicted, truth) == pytest.approx(j, abs=1e-9)
    assert metrics.davis_f(predicted, truth) == pytest.approx(f, abs=1e-9)


def reference_f(predicted: np.ndarray, truth: np.ndarray, tolerance: float = 0.008) -> float:
    """DAVIS F the long way: whole-image dilation by a disk."""

    def edges(m: np.ndarray) -> np.ndarray:
        e, s, se = np.zeros_like(m), np.zeros_like(m), np.zeros_like(m)
        e[:, :-1], s[:-1], se[:-1, :-1] = m[:, 1:], m[1:], m[1:, 1:]
        b = (m ^ e) | (m ^ s) | (m ^ se)
        b[-1], b[:, -1] = m[-1] ^ e[-1], m[:, -1] ^ s[:, -1]
        b[-1, -1] = False
        return b

    radius = int(np.ceil(tolerance * np.hypot(*truth.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    mine, true = edges(predicted), edges(truth)
    if not mine.any() or not true.any():
        return float(mine.any() == true.any())
    precision = (mine & ndimage.binary_dilation(true, disk)).sum() / mine.sum()
    recall = (true & ndimage.binary_dilation(mine, disk)).sum() / true.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("size", [(9, 7), (48, 64), (200, 310)])
def test_boundary_f_equals_dilation_of_whole_images(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        blobs = ndimage.gaussian_filter(rng.normal(size=(2, *size)), (0, 3, 3))
        predicted, truth = blobs > rng.normal(0, 0.05)
        truth = truth if rng.random() < 0.5 else np.roll(predicted, (2, -3), (0, 1))
        assert metrics.davis_f(predicted, truth) == pytest.approx(
            reference_f(predicted, truth), abs=1e-12
        )


def test_davis_empties() -> None:
    empty, full = np.zeros(HW, bool), square_mask(HW, 3, 3, 9, 9) > 0
    assert metrics.davis_j(empty, empty) == metrics.davis_f(empty, empty) == 1.0
    assert metrics.davis_f(empty, full) == metrics.davis_f(full, empty) == 0.0


def test_recall_and_decay_by_hand() -> None:
    x = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    assert metrics.recall(x) == 5 / 8  # 0.5 is not above 0.5
    # np.round(linspace(1, 8, 5)) - 1 = 0, 2, 3 (3.5 + 1e-10 rounds up), 5, 7; quarters share ends.
    assert metrics.decay(x) == pytest.approx(0.9 - 0.4)


def test_davis_objects_drops_first_and_last_frames_and_voids() -> None:
    truth = np.stack([square_mask(HW, 5, 5, 20, 20)] * 5)
    truth[:, 30:40, 30:50] = 2
    predicted = truth.copy()
    predicted[0] = predicted[4] = 0  # must not count
    predicted[2][predicted[2] == 2] = 0
    truth[3, 45:, :] = 255  # background in the reference
    one, two = metrics.davis_objects(predicted, truth)
    assert (one.j_mean, one.f_mean, one.jf, one.j_recall) == (1.0, 1.0, 1.0, 1.0)
    assert two.j_mean == pytest.approx(2 / 3) and two.f_recall == pytest.approx(2 / 3)
    predicted[1, 0, 0] = 3
    with pytest.raises(ValueError, match="object id 3"):
        metrics.davis_objects(predicted, truth)
    with pytest.raises(ValueError, match="at least 3 frames"):
        metrics.davis_objects(predicted[:2], truth[:2])


def test_pck_bound_is_included_and_both_aggregations_differ() -> None:
    truth = np.zeros((4, 2))
    near = np.array([[3.0, 4.0], [5.0001, 0.0], [0.0, -5.0], [0.0, 0.0]])
    hits = [
        metrics.pck_hits(near, truth, 50, 0.1),
        metrics.pck_hits(truth[:1] + 9, truth[:1], 50, 0.1),
    ]
    assert hits == [(3, 4), (0, 1)]
    assert metrics.pck_per_image(hits) == pytest.approx(3 / 8)
    assert metrics.pck_per_point(hits) == pytest.approx(3 / 5)


def test_pck_needs_one_prediction_a_keypoint_and_knows_both_sizes() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        metrics.pck_hits(np.zeros((2, 2)), np.zeros((3, 2)), 50, 0.1)
    assert box_size((10, 20, 40, 90)) == 70 and image_size((50, 40)) == 50


# Overlaps by hand: I, U, and background where it matters.
HALF, ALL, MISS, NOTHING = (
    metrics.Overlap(5, 10, 90, 95),
    metrics.Overlap(30, 30, 70, 70),
    metrics.Overlap(0, 60, 40, 100),
    metrics.Overlap(0, 0, 100, 100),
)


def test_mean_and_pooled_iou_differ() -> None:
    found = [HALF, ALL, MISS, NOTHING]
    assert metrics.mean_iou(found) == pytest.approx((0.5 + 1 + 0 + 1) / 4, abs=1e-15)
    assert metrics.mean_iou(found, empty=0.0) == pytest.approx(1.5 / 4, abs=1e-15)
    assert metrics.pooled_iou(found) == 35 / 100
    assert np.isnan(metrics.pooled_iou([NOTHING]))
    with pytest.raises(ValueError, match="at least one mask"):
        metrics.mean_iou([])


def test_without_void_a_truth_of_255_is_foreground() -> None:
    truth = np.array([[255, 255, 0]], np.uint8)
    predicted = np.array([[True, False, True]])
    assert metrics.overlap(predicted, truth)[:2] == (0, 1)
    assert metrics.overlap(predicted, truth, void=None)[:2] == (1, 3)


def test_referring_segmentation_by_hand() -> None:
    nine = metrics.Overlap(9, 10, 0, 0)
    lisa = metrics.referring([HALF, nine, MISS, NOTHING])
    assert lisa.ciou == 14 / 80 and lisa.miou == pytest.approx((0.5 + 0.9 + 0 + 1) / 4)
    # 0.5 and 0.9 reach their own bounds.
    assert lisa.precision == {0.5: 3 / 4, 0.6: 2 / 4, 0.7: 2 / 4, 0.8: 2 / 4, 0.9: 2 / 4}
    lavt = metrics.referring([HALF, nine, MISS, NOTHING], empty=metrics.EMPTY_IS["lavt"])
    assert lavt.ciou == lisa.ciou and lavt.miou == pytest.approx((0.5 + 0.9) / 4)
    assert lavt.precision[0.5] == 2 / 4


def test_pascal5i_is_the_mean_of_folds_and_names_absent_classes() -> None:
    found = metrics.pascal5i([HALF, ALL, MISS, HALF], [1, 1, 5, 20])
    # Fold 0: class 1 pooled 35 / 40, class 5 0, three absent; fold 3: class 20 only.
    assert found.folds[0].miou == pytest.approx((35 / 40) / 5, abs=1e-15)
    assert found.folds[0].absent == (2, 3, 4) and found.folds[3].absent == (16, 17, 18, 19)
    assert found.miou == pytest.approx((found.folds[0].miou + 0.5 / 5) / 2, abs=1e-15)
    front, back = 35 / 100, (90 + 70 + 40) / (95 + 70 + 100)
    assert found.folds[0].fb_iou == pytest.approx((front + back) / 2, abs=1e-15)
    assert found.fb_iou == pytest.approx((found.folds[0].fb_iou + (0.5 + 90 / 95) / 2) / 2)
    assert [fold_of(c) for c in (1, 5, 6, 20)] == [0, 0, 1, 3]
    with pytest.raises(ValueError, match="class id 1 to 20, found 0"):
        metrics.pascal5i([HALF], [0])
    with pytest.raises(ValueError, match="found 1 episodes and 0 classes"):
        metrics.pascal5i([HALF], [])


def test_cosegmentation_averages_images_then_groups() -> None:
    found = metrics.cosegmentation({"cow": [HALF, ALL, MISS], "car": [NOTHING]})
    assert found.groups["cow"].jaccard == 0.5 and found.jaccard == (0.5 + 1) / 2
    # Right pixels of 100: 95, 100, 40; and all of the empty image.
    assert found.groups["cow"].precision == pytest.approx((0.95 + 1 + 0.4) / 3, abs=1e-15)
    assert found.precision == pytest.approx((2.35 / 3 + 1) / 2, abs=1e-15)
    with pytest.raises(ValueError, match="at least one group"):
        metrics.cosegmentation({})


def test_imagenet_s_ids_are_cast_before_they_are_combined() -> None:
    rgb = np.zeros((1, 3, 3), np.uint8)
    rgb[0, 1, :2], rgb[0, 2, :2] = (232, 3), (151, 3)
    assert metrics.class_ids(rgb).tolist() == [[0, 1000, 919]]
    with pytest.raises(ValueError, match="RGB label image"):
        metrics.class_ids(rgb[:, :, 0])


def test_imagenet_s_pools_over_the_dataset_with_background() -> None:
    one = metrics.class_counts(
        np.array([[1, 1, 2, 0], [1, 2, 9, 3]]), np.array([[1, 1, 1, 0], [1000, 1000, 2, 0]]), 4
    )
    # 9 is no class: a pixel of class 2 is missed, and nothing else is charged.
    assert [c.tolist() for c in one] == [[1, 2, 0, 0, 0], [1, 2, 1, 1, 0], [2, 3, 1, 0, 0]]
    two = metrics.class_counts(np.array([[2, 2]]), np.array([[2, 0]]), 4)
    found = metrics.class_iou([one, two])
    # Pooled: background 1 / 3, class 1 2 / 3, class 2 1 / 4 (not the mean of 0 and 1 / 2),
    # class 3 is predicted and never true, class 4 is nowhere: both count 0, both are named.
    assert found.iou_C == pytest.approx([1 / 3, 2 / 3, 1 / 4, 0, 0], abs=1e-15)
    assert found.miou == pytest.approx((1 / 3 + 2 / 3 + 1 / 4) / 5, abs=1e-15)
    assert found.absent == (3, 4)
    with pytest.raises(ValueError, match="class ids 0 to 4 or 1000 in the truth, found 0 to 5"):
        metrics.class_counts(np.array([[0, 0]]), np.array([[0, 5]]), 4)
    with pytest.raises(ValueError, match="one shape"):
        metrics.class_counts(np.zeros((2, 2), int), np.zeros((2, 3), int), 4)


def test_choice_accuracy_macro_and_micro() -> None:
    found = metrics.choice_accuracy([True, True, False, False, True], ["a", "a", "a", "a", "b"])
    assert found.macro == (0.5 + 1) / 2 and found.micro == 3 / 5
    assert found.tasks == {"a": 0.5, "b": 1.0}
    with pytest.raises(ValueError, match="0 questions"):
        metrics.choice_accuracy([], [])
