"""What a finished run leaves on the terminal: its tables, what to heed, the verdict last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from kvfix.terminal import console, labelled, note

if TYPE_CHECKING:
    from kvfix.report.verdict import Verdict


def _verdict(found: Verdict) -> None:
    """What the report begins with, last of all, where a reader looks first."""
    for point in found.points:
        console.print(Text.assemble((f"{point.head}: ", "bold"), point.text))
    console.print(Text(found.why))
    console.print(Text(found.command, "bold"), soft_wrap=True)  # in one piece, to be copied


def show(record: dict, report: Path) -> None:
    """The end of `kvfix diagnose` and `kvfix eval`."""
    from kvfix.report import surfacing
    from kvfix.report.questions import boards, table
    from kvfix.report.stages import clean, headline_panels
    from kvfix.report.table import findings, summary
    from kvfix.report.verdict import verdict

    printable = clean(record)
    shown = headline_panels(printable)
    if any(panel.staged for panel in shown):
        console.print(summary(record))
    for board in boards(printable):
        console.print(table(board))
    if record.get("surfacing"):
        console.print(surfacing.table(record))
    said = [f for f in record["findings"] if not f["id"].startswith("surfacing")]  # in the table
    clear = [f for f in said if f["clear"]]
    if clear or not record["findings"]:
        console.print(findings({**record, "findings": clear}))
    if unclear := len(said) - len(clear):
        console.print(Text(f"{unclear} more without a clear difference: in the report", "dim"))
    for line in record.get("notes") or []:
        note(line)
    for entry in record["left_out"][:10]:
        labelled("left out", "yellow", f"{entry['id']:.200}: {entry['why']}")
    if len(record["left_out"]) > 10:
        console.print(f"... and {len(record['left_out']) - 10} more units left out")
    _verdict(verdict(printable, shown))
    cost = f"{record['seconds']:.0f} s, at most {record['peak_memory_mib']:.0f} MiB"
    if (ranks := record["starts"][-1]["host"].get("ranks", 1)) > 1:
        cost += f" in each of {ranks} processes"
    console.print(f"{cost}. Report: {report}", soft_wrap=True)


def show_comparison(record: dict, report: Path) -> None:
    """The end of `kvfix compare`."""
    from kvfix.report.compare_table import sentences, tables
    from kvfix.report.stages import clean
    from kvfix.report.verdict import change_verdict

    for table in tables(record):
        console.print(table)
    console.print(sentences(record))
    for line in record["notes"]:
        note(line)
    for u in record["units"]:
        if u["only_before"] or u["only_after"]:
            ids = ", ".join(f"{i:.60}" for i in [*u["only_before"], *u["only_after"]][:5])
            line = (
                f"{u['task']} ({u['dataset']}): {u['shared']} units in both, "
                f"{len(u['only_before'])} only before, {len(u['only_after'])} only after: {ids}"
            )
            labelled("unmatched", "yellow", line)
    _verdict(change_verdict(clean(record)))
    console.print(f"{record['seconds']:.0f} s. Report: {report}", soft_wrap=True)
