"""Can the shipped nanos read the letters that multiple-choice questions draw beside their marks?

    python benchmarks/letters.py

A readout is told where the marked points lie; a model that answers must find them by their letters.
Where no probe can tell the letters of drawn marks apart, a repair of the language model has nothing
to make answers of, however much its values know about the points.

Probes are fitted on marks of train scenes and tested on marks of test scenes: which of A, B, C and
D a mark is, and, as one control, whether there is a mark at all (against as many places without
one). They see the 3 x 3 cells around the mark, at every stage; at the vision encoder, which all
later stages follow from, a network with a hidden layer sees them, too. The other control is a
linear probe on the pixels that the encoder is given, in a window as large, centred on the mark.
About two minutes a nano.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kvfix.data.scenes.questions import scene_question
from kvfix.eval.grid import PIXEL_CENTRE, sample_cells, to_cells
from kvfix.eval.probes.logistic import fit_logistic, fit_standardiser
from kvfix.eval.source import MlmSource, View
from kvfix.mlm.load import load_mlm
from kvfix.shipped import nano_dir, shipped_families

LETTERS = "ABCD"
KINDS = ("vision", "projector", "hidden", "value")
PIXELS = "pixels"
AROUND = torch.cartesian_prod(*2 * (torch.arange(-1, 2),))  # (9, 2) rows and columns
FAR = 0.15  # of the side, from any mark: there is none
INPUT = 80  # pixels a side that every nano's encoder is given
HALF = 15  # of the window, in those pixels: three cells
HIDDEN, STEPS = 256, 300  # of the network


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
    for column in ("nano", PIXELS, "vision, network", *KINDS):
        table.add_column(column)
    for family in shipped_families():
        mlm = load_mlm(str(nano_dir(family)), dtype=torch.float32)
        source = MlmSource(mlm, kinds=KINDS)
        train, test = Marks(source, "train", asked.images), Marks(source, "test", n_test)
        cells = {
            kind: f"{100 * train.letters(test, kind):.0f} / {100 * train.presence(test, kind):.0f}"
            for kind in (PIXELS, *KINDS)
        }
        network = f"{100 * train.letters_by_network(test, 'vision'):.0f}"
        table.add_row(family, cells.pop(PIXELS), network, *cells.values())
    Console(width=110).print(table)


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
        found: dict[str, list[Tensor]] = {kind: [] for kind in (PIXELS, *KINDS)}
        empty: dict[str, list[Tensor]] = {kind: [] for kind in (PIXELS, *KINDS)}
        rng = np.random.default_rng(0)
        for index in range(n):
            question = scene_question(split, "Visual_Correspondence", index)
            image = question.images[1]
            at = {label: (x, y) for label, x, y in question.points[1]}
            marks_K2 = np.array([at[letter] for letter in LETTERS])
            elsewhere_K2 = _elsewhere(marks_K2, image.width, rng)
            [view] = source.views([image])
            for kept, places_K2 in ((found, marks_K2), (empty, elsewhere_K2)):
                kept[PIXELS].append(window(image, places_K2))
                for kind in KINDS:
                    kept[kind].append(around(view, kind, places_K2))
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

    def letters_by_network(self, test: Marks, kind: str) -> float:
        """The same by a network with a hidden layer, at the first site."""
        x_NC, other_NC = self.found_SNC[kind][0], test.found_SNC[kind][0]
        mean_C, spread_C = x_NC.mean(0), x_NC.std(0).clamp(min=1e-6)
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Linear(x_NC.shape[1], HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(HIDDEN, len(LETTERS)),
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
        for _ in range(STEPS):
            logits_NK = network((x_NC - mean_C) / spread_C)
            loss = torch.nn.functional.cross_entropy(logits_NK, self.letter_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            said_N = network.eval()((other_NC - mean_C) / spread_C).argmax(-1)
        return float((said_N == test.letter_N).float().mean())

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


def window(image: Image.Image, xy_K2: np.ndarray) -> Tensor:
    """(1, K, 3 x 30 x 30) pixels around points, as the encoder is given them; black outside."""
    small = image.convert("RGB").resize((INPUT, INPUT), Image.Resampling.BICUBIC)
    scaled_K2 = np.round((xy_K2 + PIXEL_CENTRE) * INPUT / image.width).astype(int)
    boxes = [(x - HALF, y - HALF, x + HALF, y + HALF) for x, y in scaled_K2.tolist()]
    pixels = [np.asarray(small.crop(box), np.float32).ravel() / 255 for box in boxes]
    return torch.from_numpy(np.stack(pixels))[None]


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
