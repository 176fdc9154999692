"""The eval suite's core against outputs of the reference implementations, kept beside the checkout.

Marked ``shared``: the files are not part of the project. The ordinary tests carry small cases of
the same.
"""

import json

import numpy as np
import pytest
import torch
from grids import grid_layout
from PIL import Image
from places import SHARED
from torch.nn import functional

from kvfix.eval import metrics
from kvfix.eval.probes.propagation import Propagator, Window, hard_labels

pytestmark = pytest.mark.shared

GOLDENS = SHARED / "goldens"


@pytest.fixture(scope="module", autouse=True)
def _goldens_are_there() -> None:
    if not GOLDENS.is_dir():
        pytest.fail(f"no reference outputs in {GOLDENS}; set KVFIX_SHARED")


def read_json(path: str) -> dict:
    return json.loads((GOLDENS / path).read_text())


def mask_of_runs(bounds: list[int], shape: list[int]) -> np.ndarray:
    flat = np.zeros(shape[0] * shape[1], bool)
    for start, end in zip(bounds[::2], bounds[1::2], strict=True):
        flat[start:end] = True
    return flat.reshape(shape)


def test_davis_j_and_f_on_all_ten_cases() -> None:
    cases = read_json("davis_jf_synthetic.json")["cases"]
    assert len(cases) == 10
    for name, case in cases.items():
        predicted = mask_of_runs(case["pred_rle"], case["shape"])
        truth = mask_of_runs(case["gt_rle"], case["shape"])
        assert metrics.davis_j(predicted, truth) == pytest.approx(case["J"], abs=1e-9), name
        assert metrics.davis_f(predicted, truth) == pytest.approx(case["F"], abs=1e-9), name


def test_label_propagation_of_dino() -> None:
    golden = np.load(GOLDENS / "dino_label_prop_nb2_top5_last7.npz")
    reach, top_k, n_last, patch = (int(v) for v in golden["params"])
    frames = torch.tensor(golden["feats"])
    rows, cols = golden["seg0"].shape
    n_labels = golden["soft"].shape[1]
    first = functional.one_hot(torch.tensor(golden["seg0"]).long(), n_labels).permute(2, 0, 1)
    layout = grid_layout((rows * patch, cols * patch), (rows, cols))
    p = Propagator(
        frames[:1], first.float(), window=Window(reach, reach), n_last=n_last, top_k=top_k
    )
    for t, (soft, hard) in enumerate(zip(golden["soft"], golden["hard"], strict=True), start=1):
        found = p.step(frames[t : t + 1])
        assert np.abs(found[0].numpy() - soft).max() <= 1e-4
        assert np.array_equal(hard_labels(found, layout)[0].numpy(), hard)


def hsnet_overlap(mask: str, category: int) -> metrics.Overlap:
    labels = np.asarray(Image.open(GOLDENS / mask))
    truth = (labels == category).astype(np.uint8)
    predicted = np.roll(truth, (6, -4), (0, 1))
    predicted[:30, :30] = 1
    truth[labels == 255] = 255
    return metrics.overlap(predicted, truth)


def test_hsnet_counts_miou_and_fb_iou() -> None:
    golden = read_json("hsnet_miou_fbiou.json")
    found = [hsnet_overlap(case["mask"], case["cls"]) for case in golden["cases"]]
    classes = [case["cls"] for case in golden["cases"]]
    for overlap, case in zip(found, golden["cases"], strict=True):
        assert [overlap.inter_background, overlap.inter] == case["inter_bg_fg"]
        assert [overlap.union_background, overlap.union] == case["union_bg_fg"]
    for fold in (0, 2):
        of = range(5 * fold + 1, 5 * fold + 6)
        inside = [i for i, c in enumerate(classes) if c in of]
        overlaps, labels = [found[i] for i in inside], [classes[i] for i in inside]
        figures = golden[f"fold{fold}"]
        assert 100 * metrics.class_miou(overlaps, labels, of) == pytest.approx(
            figures["mIoU"], abs=1e-5
        )
        assert 100 * metrics.fb_iou(overlaps) == pytest.approx(figures["FBIoU"], abs=1e-5)


def test_spair_pck_counts() -> None:
    golden = read_json("spair71k/golden_pck_offset.json")
    hits: dict[str, list[metrics.PairHits]] = {}
    for name, counts in golden["pairs"].items():
        pair = read_json(f"spair71k/PairAnnotation/test/{name}.json")
        truth = np.array(pair["trg_kps"], float)
        predicted = truth + np.arange(len(truth))[:, None] * np.array([7, -3])
        x0, y0, x1, y1 = pair["trg_bndbox"]
        sizes = {"bbox": max(x1 - x0, y1 - y0), "img": max(pair["trg_imsize"][:2])}
        for key in golden["per_point"]:
            kind, alpha = key.split("@")
            found = metrics.pck_hits(predicted, truth, sizes[kind], float(alpha))
            assert found == (counts[key], counts["n"])
            hits.setdefault(key, []).append(found)
    for key, pairs in hits.items():
        assert metrics.pck_per_point(pairs) == pytest.approx(golden["per_point"][key], abs=1e-12)
        assert metrics.pck_per_image(pairs) == pytest.approx(golden["per_image"][key], abs=1e-12)
