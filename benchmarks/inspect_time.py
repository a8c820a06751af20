"""`scalevec inspect` on SmolLM2: wall-clock beyond importing torch (goal: under 1 s)."""

import statistics
import subprocess
import sys
import time

from .harness import Figure, report, smollm2


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


model = str(smollm2())
inspect = f"from scalevec.cli import main; main(['inspect', {model!r}])"
beyond, whole = [], []
for _ in range(7):
    base = seconds("import torch")
    ours = seconds(inspect)
    beyond.append(ours - base)
    whole.append(ours)
median = statistics.median(beyond)
report(
    "inspect_time",
    [
        Figure("inspect beyond importing torch, median of 7", median, "s", "< 1 s", median < 1.0),
        Figure("inspect, whole process", statistics.median(whole), "s"),
    ],
)
