"""What tracing every step adds to a training step, beside eager statistics and histograms of the same matrices.

Goal G7: at most 0.3 % of a step of 2,048 predictions and 2 % of one of 256, and no more than half of eager statistics.
"""

import itertools
import math
import pathlib
import statistics
import tempfile
import time

import scalevec as sv
import torch

from .harness import Figure, interleave, micro, report


def seconds() -> tuple[float, float]:
    """CPU seconds of this process but for the trace's writer, and those of the writer, whose work on one row runs
    on into the next step."""
    writer = 0.0
    for task in pathlib.Path("/proc/self/task").iterdir():
        if (task / "comm").read_text() == "trace.h5\n":
            # The clock of a thread, by its number (the kernel's posix-timers.h).
            writer += time.clock_gettime((~int(task.name) << 3) | 6)
    return time.process_time() - writer, writer


figures = []
with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    # The last has no goal: five times the vectors, half of them behind maps whose rows are summed besides.
    for strategy, batch, goal, steps_run in (
        ("standard", 8, 0.003, 160), ("standard", 1, 0.02, 800), ("unified", 1, None, 160),
    ):  # fmt: skip
        traced = sv._scalevec.Training(micro(batch=batch, steps=steps_run, every=2, strategy=strategy))
        marks = [seconds()]
        sv._scalevec.run_training(
            traced, folder / f"{strategy}{batch}", resume=False, command="benchmark",
            on_step=lambda event, marks=marks: marks.append(seconds()) is not None,
        )  # fmt: skip
        steps = [b - a for (a, _), (b, _) in itertools.pairwise(marks)]
        # Step i + 1 is traced where it is even; the first is, and warms up; the last validates.
        first, last = 8, steps_run - 4
        written = (marks[last][1] - marks[first][1]) / ((last - first) / 2)
        pairs = [(steps[i + 1] - steps[i] + written, steps[i]) for i in range(first, last, 2)]
        shares = sorted(more / plain for more, plain in pairs)
        share = statistics.median(shares)
        # The median's interval at 95 %, from order statistics.
        reach = round(0.98 * math.sqrt(len(shares)))
        low, high = (shares[len(shares) // 2 + side] for side in (-reach, reach))
        maps = [t for n, t in traced.tensors.items() if "/" not in n and t.ndim == 2 and "embed" not in n]
        gradients = [g for n, g in traced.gradients.items() if g.ndim == 2 and "embed" not in n]

        def statistics_by_operators(maps=maps, gradients=gradients) -> None:
            for w, g in zip(maps, gradients, strict=True):
                (w * w).sum(0), (w * g).sum(0), (g * g).sum(0)

        def histograms(maps=maps, gradients=gradients) -> None:
            for t in maps + gradients:
                torch.histc(t, bins=64)

        both = interleave(statistics_by_operators, histograms, pairs=9, warmup=1)
        plain = statistics.median(p for _, p in pairs)
        tokens = 256 * batch
        figures += [
            Figure(
                f"tracing every step, {strategy}, {tokens:,} predictions, share of a step", 100 * share, "%",
                f"<= {100 * goal:g}" if goal else "",
                None if not goal or low <= goal < high else high <= goal,
                f"{100 * low:.1f} to {100 * high:.1f}, {len(pairs)} pairs; all metrics and channels",
            ),
            Figure("  what it adds, CPU time", 1e3 * statistics.median(more for more, _ in pairs), "ms"),
            Figure("  of which the writer's thread", 1e3 * written, "ms"),
            Figure("  three column sums by eager operators", 100 * both.ours / plain, "%"),
            Figure("  histograms of weights and gradients", 100 * both.peer / plain, "%"),
            Figure(
                "  tracing / eager operators", share * plain / both.ours, "x", "<= 0.5" if goal else "",
                share * plain / both.ours <= 0.5 if goal else None,
            ),
        ]  # fmt: skip

report("tracing_step", figures)
