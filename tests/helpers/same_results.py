"""Prove that a change of structure changed no number.

    python tests/helpers/same_results.py record before      # in the old checkout
    python tests/helpers/same_results.py record before kvfix score    # only such commands
    python tests/helpers/same_results.py record after       # in the new one
    python tests/helpers/same_results.py before after       # prints every value that differs

`record` runs the shipped nano through `kvfix diagnose`, `kvfix eval` with and without an adapter,
`kvfix compare`, 20 steps of both training recipes and, where the shared reference data lies beside
the checkout, `kvfix score`. About ten minutes on two cores. Values must agree to 1e-6; what tells a
run apart from its twin (times, paths, versions, hashes of files that hold paths) is not looked at.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOLERANCE = 1e-6
# Names of what may differ between two starts of the same work.
PASSING = {
    *(
        "seconds",
        "started",
        "starts",
        "command",
        "out",
        "versions",
        "kvfix",
        "git",
        "pid",
        "schema",
    ),
    *("peak_memory_mib", "finished", "time", "host", "resumed", "fingerprint", "adapter", "id"),
    *(
        "python",
        "adapter_sha256",
        "files",
        "images_per_s",
        "tokens_per_s",
        "data_wait",
        "mfu",
        "eta",
    ),
    *("train_runtime", "train_samples_per_second", "train_steps_per_second", "memory_gb"),
}
TRAINING = ("threads=1", "steps=20", "batch=4", "log_every=1", "lora.rank=8")


def record(out: Path, root: Path, only: list[str]) -> None:
    """Run every command that begins with the words `only`; each leaves a folder in `out`."""
    shared = Path(os.environ.get("KVFIX_SHARED", root.parent / "shared"))
    adapter = out / "surfacing"
    recipes = [
        [sys.executable, root / "recipes" / f"train_{name}.py", f"out={out / name}", *TRAINING]
        for name in ("surfacing", "artifacts")
    ]
    runs = [
        ["kvfix", "diagnose", "--limit", "8", "--out", out / "diagnose"],
        ["kvfix", "eval", "--limit", "12", "--out", out / "eval"],
        ["kvfix", "eval", "--limit", "12", "--adapter", adapter, "--out", out / "after"],
        ["kvfix", "compare", out / "eval", out / "after", "--out", out / "compare"],
    ]
    if shared.is_dir():
        blink, davis = shared / "goldens" / "blink", shared / "data" / "DAVIS"
        answers = ["--answers", blink / "val_answers.json"]
        for dump in sorted((blink / "saved_outputs").iterdir()):
            name = f"score_blink_{dump.stem}"
            words = ["--predictions", dump, *answers, "--out", out / name]
            runs.append(["kvfix", "score", "blink", *words])
        masks = ["--pred", davis / "Annotations" / "480p", "--gt", davis]
        runs.append(["kvfix", "score", "davis", *masks, "--out", out / "score_davis"])
    out.mkdir(parents=True)
    for words in (w for w in [*recipes, *runs] if w[: len(only)] == only):
        print(*words, flush=True)
        subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def values(folder: Path) -> dict[str, Any]:
    """Every leaf of every JSON file below a folder, by file and path."""
    found: dict[str, Any] = {}
    for file in sorted([*folder.rglob("*.json"), *folder.rglob("*.jsonl")]):
        if file.name in ("adapter_config.json", "manifest.json", "trainer_state.json"):
            continue
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines() if file.suffix == ".jsonl" else [text]
        for number, line in enumerate(lines):
            name = f"{file.relative_to(folder)}:{number}"
            found |= dict(_leaves(json.loads(line), name))
    return found


def _leaves(item: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(item, dict):
        for key, value in item.items():
            if key not in PASSING:
                yield from _leaves(value, f"{name}.{key}")
    elif isinstance(item, list):
        for number, value in enumerate(item):
            yield from _leaves(value, f"{name}[{number}]")
    else:
        yield name, item


def same(a: Any, b: Any) -> bool:
    """Equal, or two numbers within the tolerance."""
    if isinstance(a, str) and isinstance(b, str) and "/" in a and "/" in b:
        return True  # a path
    if isinstance(a, float) or isinstance(b, float):
        try:
            return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        except TypeError:
            return False
    return a == b


def main(words: list[str]) -> int:
    """See the top of the file."""
    if words[:1] == ["record"] and len(words) > 1:
        record(Path(words[1]).resolve(), Path.cwd(), words[2:])
        return 0
    if len(words) != 2:
        print(__doc__)
        return 2
    before, after = values(Path(words[0])), values(Path(words[1]))
    lost, new = before.keys() - after.keys(), after.keys() - before.keys()
    differ = [k for k in before.keys() & after.keys() if not same(before[k], after[k])]
    for title, keys in (("only before", lost), ("only after", new), ("differ", differ)):
        print(f"{title}: {len(keys)} of {len(before)} values")
        for key in sorted(keys)[:20]:
            print(f"  {key}: {before.get(key)!r} -> {after.get(key)!r}")
    return int(bool(lost or new or differ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
