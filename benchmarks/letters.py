"""Can the shipped nanos read the letters that multiple-choice questions draw beside their marks?

    python benchmarks/letters.py

A readout is told where the marked points lie; a model that answers must find them by their letters.
Where no linear probe can tell the letters of drawn marks apart, no repair of the language model can
make it answer such a question, however much its values know about the points.

For every stage of each nano, by linear probes on the 3 x 3 cells around a mark, fitted on marks of
train scenes and tested on marks of test scenes: which of A, B, C and D it is, and, as the control,
whether there is a mark at all (against as many places without one). About a minute a nano.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kvfix.data.questions import scene_question
from kvfix.eval.grid import sample_cells, to_cells
from kvfix.eval.logistic import fit_logistic, fit_standardiser
from kvfix.eval.readouts import PIXEL_CENTRE
from kvfix.eval.source import MlmSource, View
from kvfix.models import load_mlm
from kvfix.shipped import nano_dir, shipped_families

LETTERS = "ABCD"
KINDS = ("vision", "projector", "hidden", "value")
AROUND = torch.cartesian_prod(*2 * (torch.arange(-1, 2),))  # (9, 2) rows and columns
FAR = 0.15  # of the side, from any mark: there is none


def main() -> None:
    """Print a table: the best layer of each stage, chosen on nothing but the test marks.

    The best of several layers flatters the probe, which only strengthens a negative.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=600, help="for fitting; half as many for the test"
    )
    asked = parser.parse_args()
    n_test = asked.images // 2
    table = Table(
        title=f"marks of {n_test} test images, best layer, %: which letter (chance 25), "
        "whether a mark (chance 50)"
    )
    for column in ("nano", *KINDS):
        table.add_column(column)
    for family in shipped_families():
        mlm = load_mlm(str(nano_dir(family)), dtype=torch.float32)
        source = MlmSource(mlm, kinds=KINDS)
        train, test = Marks(source, "train", asked.images), Marks(source, "test", n_test)
        cells = [
            f"{100 * train.letters(test, kind):.0f} / {100 * train.presence(test, kind):.0f}"
            for kind in KINDS
        ]
        table.add_row(family, *cells)
    Console().print(table)


class Marks:
    """Features around the marks of Visual Correspondence questions, and around places without one.

    Shapes: S sites, N marks, C channels of 9 cells side by side.

    Args:
        source: The model.
        split: Of the scenes.
        n: Images, four marks each.
    """

    def __init__(self, source: MlmSource, split: str, n: int) -> None:
        """Read all features."""
        self.letter_N = torch.arange(len(LETTERS)).repeat(n)
        found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        empty: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        rng = np.random.default_rng(0)
        for index in range(n):
            question = scene_question(split, "Visual_Correspondence", index)
            image = question.images[1]
            at = {label: (x, y) for label, x, y in question.points[1]}
            marks_K2 = np.array([at[letter] for letter in LETTERS])
            [view] = source.views([image])
            for kind in KINDS:
                found[kind].append(around(view, kind, marks_K2))
                empty[kind].append(around(view, kind, _elsewhere(marks_K2, image.width, rng)))
        self.found_SNC = {kind: torch.cat(x, dim=1) for kind, x in found.items()}
        self.empty_SNC = {kind: torch.cat(x, dim=1) for kind, x in empty.items()}

    def letters(self, test: Marks, kind: str) -> float:
        """Accuracy of a probe fitted here, on other marks."""
        scores = torch.stack(
            [
                _scores(self.found_SNC[kind], self.letter_N == letter, test.found_SNC[kind])
                for letter in range(len(LETTERS))
            ]
        )
        return float((scores.argmax(0) == test.letter_N).float().mean(-1).max())

    def presence(self, test: Marks, kind: str) -> float:
        """The same for marks against places without one."""
        x_SNC, other_SNC = (
            torch.cat((m.found_SNC[kind], m.empty_SNC[kind]), 1) for m in (self, test)
        )
        is_mark_N, truth_N = (
            torch.arange(x.shape[1]) < x.shape[1] // 2 for x in (x_SNC, other_SNC)
        )
        said_SN = _scores(x_SNC, is_mark_N, other_SNC) > 0
        return float((said_SN == truth_N).float().mean(-1).max())


def around(view: View, kind: str, xy_K2: np.ndarray) -> Tensor:
    """(S, K, 9 C) features of the 3 x 3 cells around points."""
    cells_K2 = to_cells(xy_K2 + PIXEL_CENTRE, view.layout)
    features = view.features[kind]
    return torch.cat([sample_cells(features, cells_K2 + step) for step in AROUND], dim=-1)


def _elsewhere(marks_K2: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """As many random places, none near a mark."""

    def drawn() -> Iterator[np.ndarray]:
        while True:
            xy = rng.uniform(0.1, 0.9, 2) * side
            if np.linalg.norm(marks_K2 - xy, axis=1).min() > FAR * side:
                yield xy

    places = drawn()
    return np.array([next(places) for _ in marks_K2])


def _scores(x_SNC: Tensor, y_N: Tensor, other_SNC: Tensor) -> Tensor:
    """(S, N) logits for other samples."""
    scale = fit_standardiser(x_SNC)
    fit = fit_logistic(scale(x_SNC), y_N.float())
    return torch.einsum("snc,sc->sn", scale(other_SNC), fit.weight_SC) + fit.bias_S[:, None]


if __name__ == "__main__":
    main()
