"""`kvfix score`: the options of its commands, and what they show."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kvfix.commands.options import Profile
from kvfix.terminal import RichWatch, command_line, console, fail, note

score_app = typer.Typer(help="Score predictions of another tool by official rules.")

Out = Annotated[Path | None, typer.Option(help="Also write a scored folder, for `kvfix compare`.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap behind the intervals.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print every figure to stdout at full precision.")
]
Davis2016Masks = Annotated[Path, typer.Option(help="Results: <sequence>/<frame>.png, one object.")]
Davis2016 = Annotated[Path, typer.Option(help="DAVIS folder (val of 2016), or masks alike.")]
DavisMasks = Annotated[
    Path,
    typer.Option(help="Results: <sequence>/<frame>.png, or <sequence>/<object>/<frame>.png."),
]
Davis = Annotated[Path, typer.Option(help="DAVIS folder (val), or masks like the results.")]
SpairPoints = Annotated[
    Path, typer.Option(help='JSONL: {"pair": "000001-SRC-TRG:cat", "xy": [[x, y], ...]}.')
]
Spair = Annotated[Path, typer.Option(help="SPair-71k folder (test); photos are not needed.")]
RefcocoMasks = Annotated[
    Path,
    typer.Option(help='JSONL: {"id": "...", "rle": {"size": [h, w], "counts": "..."}}.'),
]
Refcoco = Annotated[Path, typer.Option(help="Folder of testA's or testB's parquet files.")]
PascalMasks = Annotated[Path, typer.Option(help="Masks: <episode id>.png, 400 x 400.")]
Pascal = Annotated[Path, typer.Option(help="VOC2012 folder.")]
ClassMaps = Annotated[
    Path, typer.Option(help="Class maps: <wordnet id>/<image>.png, RGB, id = R + 256 * G.")
]
ImagenetS = Annotated[Path, typer.Option(help="ImageNetS50, ImageNetS300 or ImageNetS919 folder.")]
MsrcMasks = Annotated[Path, typer.Option(help="Masks: <group>/<image>.png or .bmp.")]
Msrc = Annotated[Path, typer.Option(help="MSRC folder: <group>/GroundTruth/<image>.bmp.")]
_ABSENT = (
    "What has no prediction counts as an empty one. If more than 5 % have none, the figures are "
    "printed, but the exit code is 1."
)


def _score(
    name: str, pred: Path, gt: Path, out: Path | None, seed: int, as_json: bool, **rules: Any
) -> None:
    """Table and notes for people, JSON if asked for, and why the exit code is 1."""
    from kvfix.score.benchmarks import BENCHMARKS
    from kvfix.score.record import ScoreOptions, score
    from kvfix.score.show import notes_of, table_of

    benchmark, options = BENCHMARKS[name], ScoreOptions(pred, gt, out, seed, rules)
    with redirect_stdout(sys.stderr):  # libraries print warnings to stdout, which is for --json
        scored = score(benchmark, options, command=command_line(), watch=RichWatch())
    console.print(table_of(benchmark, scored.record))
    for line in notes_of(benchmark, scored.record):
        note(line)
    if as_json:
        typer.echo(json.dumps(scored.record, indent=1))
    if scored.problem is not None:
        fail(scored.problem)


@score_app.command("blink", epilog=_ABSENT)
def score_blink(
    predictions: Annotated[
        Path,
        typer.Option(
            help="Folder or file: official dump, {idx: text}, lmms-eval samples, VLMEvalKit table."
        ),
    ],
    answers: Annotated[Path, typer.Option(help='JSON of right answers: {"val_..._1": "(A)"}.')],
    profile: Annotated[
        Profile,
        typer.Option(help="Whose rules read the letter out of the text; none asks a judge."),
    ] = "kvfix",
    parsed: Annotated[
        bool, typer.Option("--parsed", help="Trust the dump's parsed letters.")
    ] = False,
    out: Out = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Multiple-choice accuracy of BLINK, macro over tasks and micro over questions.

    Predictions are a file, or a folder with a file for each task, in one of these forms:
    official {"val": [{"idx", "answer", "full_prediction", "prediction"}]};
    plain {"val_Art_Style_1": "text", ...}, or records like the official ones;
    lmms-eval *_samples_*.jsonl; VLMEvalKit .xlsx, .csv or .tsv.
    A question without prediction, or without parsed answer, is wrong.
    """
    _score("blink", predictions, answers, out, seed, as_json, profile=profile, parsed=parsed)


@score_app.command("davis")
def score_davis(
    pred: DavisMasks,
    gt: Davis,
    year: Annotated[
        Literal[2016, 2017] | None,
        typer.Option(help="Edition. Default: by the truth's list of val, else by its first mask."),
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """J, F, recall and decay of DAVIS-2017 or DAVIS-2016, semi-supervised.

    Results are labels as pixels, or a folder of masks for each object (001,
    002, ..., as SAM 2 writes them with --per_obj_png_file; of overlapping
    ones the lower label counts).
    The first and the last frame do not count and need no result.
    2017: void (255) of the truth is background. The objects are those of the
    truth's first frame: one that the results lack scores as an empty mask, a
    label beyond them is an error.
    2016: 255, or any label, is the one object of a sequence.
    """
    _score("davis", pred, gt, out, seed, as_json, year=year)


@score_app.command("davis2016")
def score_davis2016(
    pred: Davis2016Masks, gt: Davis2016, out: Out = None, seed: Seed = 0, as_json: AsJson = False
) -> None:
    """The same as `davis --year 2016`: one object in each sequence, whatever its labels are."""
    score_davis(pred, gt, 2016, out, seed, as_json)


@score_app.command("spair", epilog=_ABSENT)
def score_spair(
    pred: SpairPoints, gt: Spair, out: Out = None, seed: Seed = 0, as_json: AsJson = False
) -> None:
    """Correct keypoints (PCK) of SPair-71k, per image and per point.

    There is a line for each pair, named as in Layout/large/test.txt. "xy" holds
    a point for each of its keypoints, in the annotation's order and in pixels
    of the original target photo.
    A point counts at distance <= alpha * longer side of the target's box, and
    of the target image; alpha is 0.05, 0.1, 0.15.
    """
    _score("spair", pred, gt, out, seed, as_json)


@score_app.command("refcoco", epilog=_ABSENT)
def score_refcoco(
    pred: RefcocoMasks,
    gt: Refcoco,
    profile: Annotated[
        Literal["lisa", "lavt"],
        typer.Option(help="IoU of an empty mask against an empty truth: lisa 1, lavt 0."),
    ] = "lisa",
    out: Out = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Referring segmentation of RefCOCO: cIoU, mIoU (gIoU) and P@0.5 to 0.9 over sentences.

    There is a line for each sentence: "id" is <split>-<row, 5 digits>-<sentence>,
    both counted from 0 in the files' order, such as testA-00012-0. "rle" is
    COCO's run-length mask of the original photo, counts as text or list.
    """
    _score("refcoco", pred, gt, out, seed, as_json, profile=profile)


@score_app.command("pascal5i", epilog=_ABSENT)
def score_pascal5i(
    pred: PascalMasks,
    gt: Pascal,
    class_maps: Annotated[
        bool, typer.Option("--class-maps", help="Pixels are VOC class ids, not 0 and 1 or 255.")
    ] = False,
    out: Out = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Few-shot segmentation of Pascal-5i: mIoU and FB-IoU over HSNet's episodes.

    There is a PNG for each episode, named by its id, such as
    fold0-0007-2007_000762-bottle.png: a binary mask of the query (0 and 1, or
    0 and 255), or with --class-maps a map of VOC class ids, of which the
    episode's own is foreground. Masks are those of the 400 x 400 query.
    Void pixels of the truth count nowhere.
    """
    _score("pascal5i", pred, gt, out, seed, as_json, class_maps=class_maps)


@score_app.command("imagenet_s", epilog=_ABSENT)
def score_imagenet_s(
    pred: ClassMaps, gt: ImagenetS, out: Out = None, seed: Seed = 0, as_json: AsJson = False
) -> None:
    """Semantic segmentation of ImageNet-S: mIoU over all classes and background.

    There is a PNG for each image, of its size and in the official encoding: the
    class id is R + 256 * G, 0 for everything else. IoUs are pooled over the
    validation images. Pixels that are 1000 in the truth do not count. A class
    that the truth lacks counts 0, and is named: then the figure is that of a
    subset.
    """
    _score("imagenet_s", pred, gt, out, seed, as_json)


@score_app.command("msrc", epilog=_ABSENT)
def score_msrc(
    pred: MsrcMasks, gt: Msrc, out: Out = None, seed: Seed = 0, as_json: AsJson = False
) -> None:
    """Co-segmentation of MSRC: Jaccard index J and pixel precision P, means over groups.

    There is a mask for each image, named like it and of its size: 0 and 1, or 0
    to 255 with foreground above 127, as in the truth. J is the foreground IoU of an image,
    P its share of right pixels, foreground and background; both are means over
    a group's images, then over groups.
    """
    _score("msrc", pred, gt, out, seed, as_json)
