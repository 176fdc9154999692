"""What of the paper's findings shows on the shipped nano models, and on other runs: the
tables of eval/PAPER.md.

    python benchmarks/paper_vs_here.py
    python benchmarks/paper_vs_here.py --run pico=runs/pico/keys --run pico=runs/pico/surfacing

Runs `kvfix diagnose` on each nano (about two minutes each on two cores; resumes in runs/paper/, and
reads what is finished there) and prints a row a finding of arXiv 2510.04819, with a verdict for
each model, then every figure by itself. `--run NAME=FOLDER` adds a column of finished runs; several
folders of one name are read as one model. A verdict counts differences whose 95 % interval leaves
out 0 (`clear` in run.json); whatever is not clear is not reproduced.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from paper_claims import CLAIMS, UNTESTED, Row, found, percent, plain, short, signed, span

from kvfix.compare.correlate import CorrelateOptions, correlate
from kvfix.diagnose.prefix.findings import CONTRASTS
from kvfix.diagnose.run import diagnose
from kvfix.runs.resume import read_run
from kvfix.session import Options
from kvfix.shipped import nano_dir, shipped_families
from kvfix.terminal import RichWatch

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs" / "paper"

Models = dict[str, list[Row]]  # name -> records of one model


def main() -> None:
    """Diagnose what is not diagnosed yet, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--nano", type=Path, default=RUNS, help="where the nanos' runs lie")
    asked = parser.parse_args()
    models: Models = {}
    for family in shipped_families():
        models[family] = [_diagnosed(family, asked.nano / family)]
    nanos = [asked.nano / family for family in shipped_families()]
    for spec in asked.run:
        name, _, folder = spec.partition("=")
        models.setdefault(name, []).append(read_run(Path(folder)))
    print(verdicts(models, nanos))
    for title, table in (
        ("Where values are best, what the LM adds, what later layers lose", by_probe(models)),
        ("Input-agnostic keys by layer", agnostic(models)),
        ("Keys blocked, against equally many random keys", blocking(models)),
        ("Text before the image", prefixes(models)),
        ("Unsurfaced questions", unsurfaced(models)),
    ):
        print(f"\n**{title}**\n\n{table}")


def _diagnosed(family: str, out: Path) -> Row:
    """A finished run as it is, else a run of the command."""
    if (out / "run.json").exists() and read_run(out).get("complete"):
        return read_run(out)
    command = f"kvfix diagnose --model checkpoints/nano/{family} --out {out}"
    options = Options(model=str(nano_dir(family)), out=out)
    return diagnose(options, command=command, watch=RichWatch()).record


def verdicts(models: Models, nanos: Sequence[Path]) -> str:
    """A row a finding of the paper, a column a model."""
    lines = [["finding of the paper", *models]]
    for claim in CLAIMS:
        cells = [claim.ask(records) for records in models.values()]
        lines.append([claim.paper, *(f"**{c.verdict}**: {c.figure}" for c in cells)])
    lines.append(["How much the LM adds goes with overall perception", *_over_runs(models, nanos)])
    return markdown(lines)


def _over_runs(models: Models, nanos: Sequence[Path]) -> list[str]:
    """One correlation over the nanos; other models saw other questions."""
    record = correlate(
        CorrelateOptions(tuple(nanos), nanos[0].parent / "correlate"),
        command="kvfix compare --correlate " + " ".join(f"runs/paper/{n.name}" for n in nanos),
    ).record
    [row] = [
        r
        for r in record["correlations"]
        if (r["task"], r["place"], r["scoring"]) == ("all probes", "best", "logprob")
    ]
    ci = "too few for an interval" if row["ci"] is None else span(row["ci"])
    rho = "none" if row["rho"] is None else f"{row['rho']:+.2f}"
    told = "reproduced" if row["clear"] and row["rho"] > 0 else "not reproduced"
    said = f"**{UNTESTED if row['ci'] is None else told}**: rho {rho}, {ci} ({row['n']} runs)"
    return [
        said,
        *("see left" for _ in nanos[1:]),
        *("one model" for _ in list(models)[len(nanos) :]),
    ]


def by_probe(models: Models) -> str:
    """What each probe says of values: against random weights, the projector, and the last layer."""
    ids = ("flow.random_weights", "flow.lm_gain", "flow.late_loss")
    lines = [["model", "probe", "best value layer", "minus random weights"]]
    lines[0] += ["minus projector", "last minus best", "n"]
    for name, records in models.items():
        for peak in found(records, "flow.peak"):
            mine = {f["id"]: f for f in found(records, *ids) if f["task"] == peak["task"]}
            changes = [signed(mine[i]) if i in mine else "–" for i in ids]
            best = f"{plain(peak)} at L{peak['layer']}"
            lines.append([name, short(peak["task"]), best, *changes, str(peak["n"])])
    return markdown(lines)


def agnostic(models: Models) -> str:
    """Share of agnostic keys by layer with its interval."""
    lines = [["model", "images", "grid", "tau", "share by layer, 95 % interval"]]
    for name, records in models.items():
        for record in records:
            keys = record.get("keys") or {}
            shares = [
                r
                for r in record["results"]
                if r["task"] == "image_keys" and r["head"] is None and r["layer"] is not None
            ]
            if shares:
                said = grouped([f"{r['value']:.3f} {span(r['ci'], '')}" for r in shares])
                grid = "x".join(map(str, keys["grid"]))
                lines.append([name, str(keys["n"]), grid, f"{keys['tau']:.2g}", said])
    return markdown(lines)


def grouped(texts: Sequence[str]) -> str:
    """`L0-7 a; L8 b`: layers that say the same together."""
    parts: list[tuple[int, int, str]] = []
    for i, text in enumerate(texts):
        if parts and parts[-1][2] == text:
            parts[-1] = (parts[-1][0], i, text)
        else:
            parts.append((i, i, text))
    return "; ".join(f"L{a} {t}" if a == b else f"L{a}-{b} {t}" for a, b, t in parts)


def blocking(models: Models) -> str:
    """Base, blocked, random, and the paired difference of the last two."""
    lines = [
        ["model", "keys", "for", "measure", "base", "blocked", "random", "blocked - random", "n"]
    ]
    for name, records in models.items():
        for record in records:
            for e in (record.get("keys") or {}).get("blocking") or []:
                means, change = e["means"], e["differences"]["chosen_random"]
                three = [f"{means[c]:.3f}" for c in ("base", "chosen", "random")]
                shown = f"{change['value']:+.3f} {span(change['ci'], '+')}"
                lines.append(
                    [name, e["keys"], e["queries"], e["metric"], *three, shown, str(e["n"])]
                )
    return markdown(lines)


def prefixes(models: Models) -> str:
    """Every contrast at the best layer, and the mean over the layers that a text reaches."""
    lines = [["model", "probe", "contrast", "layer", "difference", "n", "mean over layers", "n"]]
    for name, records in models.items():
        for f in found(records, *(f"prefix.{a}_{b}" for a, b in CONTRASTS)):
            mean = f["mean_over_layers"]
            contrast = f["id"].removeprefix("prefix.").replace("_", " - ")
            at = [name, f"{short(f['task'])} ({f['dataset']})", contrast, f"L{f['layer']}"]
            lines.append([*at, signed(f), str(f["n"]), signed(mean), str(mean["n"])])
    return markdown(lines)


def unsurfaced(models: Models) -> str:
    """Every subtask and way of answering, the trained readout apart."""
    lines = [["model", "task", "readout", "answer", "readout right", "answer right"]]
    lines[0] += ["unsurfaced, of all", "of wrong", "shuffled", "beyond", "n"]
    for name, records in models.items():
        for record in records:
            for key, word in (("surfacing", ""), ("surfacing_trained", "trained ")):
                for s in record.get(key) or []:
                    shares = [percent(s[k]) for k in ("readout", "answer", "of_all", "of_wrong")]
                    beyond = percent(s["beyond"], sign="+") + (" *" if s["clear"] else "")
                    task = f"{s['subtask'].replace('_', ' ')} ({s['dataset']})"
                    at = [name, task, f"{word}L{s['layer']}", s["scoring"]]
                    lines.append([*at, *shares, percent(s["shuffled"]), beyond, str(s["n"])])
    return markdown(lines) + "\n\nIn percent; * = clear."


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line heads it."""
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


if __name__ == "__main__":
    main()
