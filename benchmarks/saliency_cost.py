"""The gradients of all scale vectors against a backward through every parameter (goal G12: <= 0.72x, equal to 1e-6)."""

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
subprocess.run(["cmake", "--build", str(folder), "--target", "saliency_cost"], check=True, stdout=subprocess.DEVNULL)
row = json.loads(subprocess.run([folder / "benchmarks" / "saliency_cost"], check=True, capture_output=True).stdout)
ratio = row["saliency"] / row["backward"]
figures = [
    Figure(
        "forward and backward, 135 M parameters, 64 tokens",
        ratio,
        "x",
        "<= 0.72x of a backward through all parameters",
        ratio <= 0.72,
        f"{row['saliency']:.3g} s CPU; all parameters {row['backward']:.3g} s, forward alone {row['forward']:.3g} s",
    ),
    Figure(
        "difference of the two gradients, relative, root mean square",
        row["difference"],
        "",
        "<= 1e-6",
        row["difference"] <= 1e-6,
        f"float32; from float64 ours is {row['error']:.3g} away, all parameters' {row['peer_error']:.3g}",
    ),
]
report("saliency_cost", figures)
