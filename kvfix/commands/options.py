"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def _tasks() -> list[str]:
    """Names for the shell to complete."""
    from kvfix.data.catalog import CATALOG

    return sorted({task for entry in CATALOG.values() for task in entry.tasks})


# Of `kvfix.eval.mcq.letters.parse.PROFILES`, which takes long to import.
Profile = Literal[
    "kvfix",
    "official",
    "lmms-eval",
    "lmms-eval@before-1435",
    "vlmevalkit",
    "vlmevalkit@before-1552",
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="ID|FOLDER",
        help="The model: a Hugging Face id or a folder. Without it, the small model that is "
        "shipped with kvfix.",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(metavar="ID|FOLDER", help="A LoRA adapter to load on top of the model."),
]
ForceAdapter = Annotated[
    bool,
    typer.Option(
        "--force-adapter", help="Load the adapter even if it was trained on another model."
    ),
]
Processor = Annotated[
    str | None,
    typer.Option(
        metavar="ID|FOLDER",
        help="Take the tokenizer and the image preprocessing from here instead of from the model.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=FOLDER]",
        help="A dataset; give the option again for more. Without it, scenes that kvfix paints "
        "itself. `kvfix data list` shows all names and which need a folder.",
    ),
]
Task = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Measure only this task; give the option again for more. Without it, every task that "
        "the data offers.",
        autocompletion=_tasks,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Use at most N images, pairs or questions for each task."
    ),
]
Heads = Annotated[
    bool, typer.Option(help="Also score every key-value head by itself, which takes longer.")
]
Clips = Annotated[
    Literal["frames", "video"],
    typer.Option(
        help="How a clip is read: every frame as an image of its own, or all frames at once as one "
        "video, for models whose videos kvfix maps (`kvfix families`)."
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(
        help="The number format to compute in; auto takes the checkpoint's own, or float32 on a "
        "CPU that has no bfloat16."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Where to compute, such as cpu or cuda:0; auto spreads a large model over all GPUs. "
        "Without it, the GPU if there is one.",
    ),
]
Quant = Annotated[
    Literal["nf4", "int8"] | None,
    typer.Option(help="Load the language model in 4 bits (nf4) or 8 bits (int8) to save memory."),
]
Attn = Annotated[
    Literal["sdpa", "eager", "flash_attention_2"] | None,
    typer.Option(help="How attention is computed. Without it, transformers chooses."),
]
Processes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Share the work among N processes of this machine. Without it, two where a small "
        "model runs on a CPU without --limit; else one.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Where the results go. The same command goes on with a run that was interrupted.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="Another number draws other random samples, such as those of confidence intervals.",
    ),
]
ReportTo = Annotated[
    Literal["tensorboard", "wandb"] | None,
    typer.Option(help="Also log the scores and the figure there, when the run is finished."),
]
Format = Annotated[
    Literal["lmms-eval"] | None,
    typer.Option("--format", help="Also write the answers as this tool writes its own."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Also print the whole record (run.json) to stdout.")
]
