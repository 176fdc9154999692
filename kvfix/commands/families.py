"""`kvfix families`: which models kvfix reads, what each needs, and what a new one would take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvfix.commands.options import AsJson
from kvfix.terminal import told

if TYPE_CHECKING:
    from kvfix.mlm.families import Family

ROW = (
    "a row in kvfix/mlm/families.py (paths of vision tower, projector and language model, LoRA "
    "targets, processor), a layout in kvfix/mlm/images/ and a tiny model in "
    "tests/helpers/tiny.py; CONTRIBUTING.md says how (A new family)"
)
_AHEAD = {"image": "an image's tokens see all of it", "prompt": "a prompt's tokens see all of it"}


def families(
    model_type: Annotated[
        str | None, typer.Argument(help="As in config.json. Default: all of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the models that kvfix reads, and what each needs."""
    from kvfix.mlm.families import FAMILIES, REFUSED, family_of
    from kvfix.mlm.language_models import LANGUAGE_MODELS

    try:
        rows = list(FAMILIES.values()) if model_type is None else [family_of(model_type, where="")]
    except ValueError as error:
        more = "" if model_type in REFUSED else f"; it would take {ROW}"
        raise ValueError(str(error).removeprefix(": ") + more) from None
    for row in rows:
        told(f"{row.model_type}: {_said(row)}")
    if model_type is None:
        for name, why in REFUSED.items():
            told(f"{name}: refused, {why}")
        inside = ", ".join(LANGUAGE_MODELS)
        told(f"language models inside: {inside}")
        told(f"another model takes {ROW}")
    if as_json:
        typer.echo(json.dumps([_record(row) for row in rows], indent=1))


def _said(row: Family) -> str:
    more = [_AHEAD.get(row.sees_ahead, ""), row.needs and f"needs {row.needs}"]
    more.append("takes clips as videos" if row.videos else "")
    return "; ".join([row.upstream, row.cut, *(text for text in more if text)])


def _record(row: Family) -> dict[str, Any]:
    return {
        "model_type": row.model_type,
        "example": row.upstream,
        "image": row.cut,
        "needs": row.needs,
        "sees_ahead": row.sees_ahead,
        "videos": row.videos,
    }
