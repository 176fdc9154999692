"""The picture of a report that the README shows.

    kvfix diagnose && python benchmarks/picture.py runs/diagnose

Needs Chromium, and writes the first screen of report.html to benchmarks/report.webp.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIZE = 1400, 700  # pixels
OUT = Path(__file__).with_name("report.webp")


def main() -> None:
    """Open the report without a window and keep what is seen."""
    report = Path(sys.argv[1], "report.html").resolve(strict=True)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("expected chromium or google-chrome on the path, found neither")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        words = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", size]
        subprocess.run(
            [*words, f"--screenshot={shot}", report.as_uri()], check=True, capture_output=True
        )
        Image.open(shot).convert("RGB").save(OUT, quality=80, method=6)
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
