"""What watching costs one norm of 576 channels: nobody there, taps, a capture (goal G4: taps <= 1.03x)."""

import json
import os
import pathlib
import subprocess

from .harness import Figure, report

root = pathlib.Path(__file__).parents[1]
named = os.environ.get("SCALEVEC_BUILD_DIR")
folders = [pathlib.Path(named)] if named else sorted(p.parent for p in root.glob("build/*/CMakeCache.txt"))
if not folders:
    raise SystemExit("configure a build first: cmake --preset release")
folder = max(folders, key=lambda f: (f / "CMakeCache.txt").stat().st_mtime)
subprocess.run(["cmake", "--build", str(folder), "--target", "watch_cost"], check=True, stdout=subprocess.DEVNULL)
rows = json.loads(subprocess.run([folder / "benchmarks" / "watch_cost"], check=True, capture_output=True).stdout)
figures = []
for row in rows:
    name = f"{row['variant']}, {row['tokens']} tokens"
    # The goal is for the same bytes: `normalized` is a third stream beside x and y.
    counts = row["tokens"] == 65536 and row["variant"] in ("empty list", "tap of the input", "taps but normalized")
    figures.append(
        Figure(
            name,
            row["ratio"],
            "x",
            "<= 1.03x of no list" if counts else "",
            row["ratio"] <= 1.03 if counts else None,
            f"{1e6 * row['seconds']:.3g} us CPU",
        )
    )
report("watch_cost", figures)
