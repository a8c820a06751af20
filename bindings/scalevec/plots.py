"""Pictures. Each takes plain numbers, writes one PNG, and returns its path."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from scalevec import _scalevec
from scalevec.experiments import Comparison


def screening(
    path: pathlib.Path,
    sites: Sequence[str],
    saliency: Sequence[np.ndarray],
    candidates: Sequence[tuple[str, float, float]],
    finalists: Sequence[tuple[str, _scalevec.Figure]],
    title: str,
) -> pathlib.Path:
    """What a search for important scale entries saw.

    Args:
        sites: addresses, in forward order.
        saliency: per site, (width,) predicted loss change of ablating each entry, in nats per token.
        candidates: (entry, predicted, exact) loss changes on the short text.
        finalists: (entry, loss change with its interval) on the longer text.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    blue, red, grey = "#2b6cb0", "#c53030", "#718096"
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(17, 5.5), width_ratios=(1.2, 1, 1), layout="constrained"
    )
    figure.suptitle(title)

    positions = np.arange(len(sites))
    largest = np.array([np.abs(s).max() for s in saliency])
    median = np.array([np.median(np.abs(s)) for s in saliency])
    is_mlp = np.array([".mlp." in site for site in sites])
    is_final = np.array([not site.startswith("layers.") for site in sites])
    for mask, colour, label in (
        (~is_mlp & ~is_final, blue, "attention"),
        (is_mlp, red, "MLP"),
        (is_final, "black", "other"),
    ):
        if mask.any():
            left.scatter(positions[mask], largest[mask], s=16, color=colour, label=f"{label}: largest entry")
    left.plot(positions, median, color=grey, linewidth=1, label="median entry")
    left.set_yscale("log")
    left.set_xlabel("scale vector, in forward order")
    left.set_ylabel("|predicted loss change| (nats per token)")
    left.set_title(f"{sum(map(len, saliency)):,} entries predicted by one backward pass")
    left.set_ylim(top=largest.max() * 8)
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")

    predicted = np.array([c[1] for c in candidates])
    exact = np.array([c[2] for c in candidates])
    middle.scatter(predicted, exact, s=18, color=blue)
    span = np.linspace(min(predicted.min(), 0), max(predicted.max(), 0), 400)  # a curve on this axis
    middle.plot(span, span, color=grey, linewidth=1, linestyle="--", label="prediction = truth")
    middle.axhline(0, color=grey, linewidth=0.5)
    middle.set_yscale("symlog", linthresh=0.01)
    middle.set_ylim(2 * min(exact.min(), -0.01), 3 * max(exact.max(), 0.01))
    farthest = int(exact.argmax())
    right_half = predicted[farthest] > (predicted.min() + predicted.max()) / 2
    middle.annotate(
        candidates[farthest][0], (predicted[farthest], exact[farthest]), xytext=(-6 if right_half else 6, 4),
        textcoords="offset points", ha="right" if right_half else "left", fontsize=8,
    )  # fmt: skip
    middle.set_xlabel("predicted loss change (nats per token)")
    middle.set_ylabel("exact loss change (nats per token)")
    middle.set_title(f"{len(candidates)} candidates, ablated exactly")
    middle.legend(frameon=False, fontsize=8)

    order = sorted(finalists, key=lambda f: f[1].value)
    rows = np.arange(len(order))
    values = np.array([figure.value for _, figure in order])
    ends = np.array([[figure.low, figure.high] for _, figure in order], dtype=float)  # NaN where there is no interval
    errors = np.abs(ends.T - values)
    right.barh(rows, values, color=[red if v > 0 else blue for v in values], alpha=0.8)
    right.errorbar(values, rows, xerr=np.nan_to_num(errors), fmt="none", ecolor="black", capsize=3, linewidth=1)
    right.set_yticks(rows, [f[0] for f in order], fontsize=8)
    right.axvline(0, color=grey, linewidth=0.5)
    right.set_xscale("symlog", linthresh=0.1)
    reach = np.nan_to_num(np.array([values, *ends.T]))
    right.set_xlim(1.5 * min(reach.min(), -0.05), 1.5 * max(reach.max(), 0.05))
    right.set_xlabel("loss change (nats per token), paired 95 % interval")
    right.set_title("Finalists, on text that did not choose them")

    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def comparison(path: pathlib.Path, title: str, rows: Sequence[Comparison]) -> pathlib.Path:
    """Differences of arms from their baselines with intervals: full where 0 is left out, hollow where it is not."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row.difference is not None]
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.45 * max(1, len(shown))), layout="constrained")
    axis.axvline(0, color="#718096", linewidth=1)
    for i, row in enumerate(shown):
        assert row.difference is not None
        colour = "#2b6cb0" if row.difference < 0 else "#c53030"
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [i, i], color=colour, linewidth=2)
        axis.plot(row.difference, i, "o", color=colour, markerfacecolor=colour if row.resolved else "white")
    axis.set_yticks(range(len(shown)), [f"{row.arm}\nagainst {row.baseline}" for row in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("change of validation loss (nats per prediction), paired by seed, 95 % interval")
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
