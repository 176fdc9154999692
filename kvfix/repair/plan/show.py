"""A plan on the terminal."""

from __future__ import annotations

from rich.table import Table

from kvfix.repair.plan.make import Plan, PlanRequest
from kvfix.report.columns import add_numbers, lean_table


def lines(made: Plan, options: PlanRequest) -> list[str]:
    """What is planned, for the terminal, as plain text."""
    asked = options.plan
    return [
        f"{options.model or 'the shipped nano'}: {made.family}, {made.parameters:,} parameters, "
        f"{made.dtype}",
        *made.report.lines(),
        *(
            f"image of {t.image_hw[0]} x {t.image_hw[1]} pixels (height x width): {t.tokens} "
            f"tokens, grid {t.grid_hw[0]} x {t.grid_hw[1]}"
            for t in made.tokens
        ),
        f"to diagnose this sample: {_ways(made.reading)}",
        f"for the flow diagnosis, clips of the largest image: {_ways(made.flow)}; a group of more "
        f"than {made.flow_images} images {_size(made.flow_image)} more an image",
        f"a step: {asked.samples} x ({made.sample_tokens} image + {asked.text_tokens} text) "
        f"tokens, {'with' if asked.checkpointing else 'without'} gradient checkpointing",
        *(
            f"refused: {m.quant or made.dtype}, ZeRO {m.zero}, offload {m.offload}: {m.refusal}"
            for m in made.memory
            if m.refusal
        ),
    ]


def table(made: Plan, options: PlanRequest) -> Table:
    """Memory by way to train; a dash where training would be refused."""
    gpus = options.plan.gpus
    shown = lean_table(
        f"memory per GPU, {gpus} GPU{'s' * (gpus > 1)}",
        "frozen = weights that do not train; trained = adapter, gradients and optimizer; host "
        "= memory of the machine",
    )
    for column in ("weights", "ZeRO", "offload"):
        shown.add_column(column, no_wrap=True)
    add_numbers(shown, "frozen", "trained", "activations", "total", "host")
    for m in made.memory:
        way = (m.quant or made.dtype, str(m.zero), m.offload)
        bytes_of = (m.weights, m.states, m.activations, m.total, m.host)
        cells = ("-",) * 5 if m.refusal else tuple(map(_size, bytes_of))
        shown.add_row(*way, *cells, style="dim" if m.refusal else None)
    return shown


def _ways(bytes_of: dict[str, int]) -> str:
    return ", with ".join(
        f"{'' if k == 'plain' else k} {_size(n)}".strip() for k, n in bytes_of.items()
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
