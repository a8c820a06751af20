"""Traces: what a training left, or is leaving, at every step."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalevec import _scalevec
from scalevec.errors import make_error

if TYPE_CHECKING:
    from scalevec.model import Progress


class Trace:
    """A trace as it stood when it was opened: finished, growing, or left by a killed training.

    ``trace["rms"]`` is an array over steps, (steps, sites) or (steps, channels); ``trace["rms", address]`` is one
    site's: (steps,) or (steps, width). Every row in it was checked. `refresh` sees what has come since.

    Attributes:
        steps: (rows,), int64.
        columns: name to `TraceColumn`: unit, description, per.
        sites: the norm sites, in forward order.
        gaps: (first step, last step, rows) of rows that a full disk or ring lost.
        damage: what ``skip_damage`` left out.
    """

    def __init__(self, path: str | os.PathLike[str], *, skip_damage: bool = False) -> None:
        self.path = pathlib.Path(path)
        self._skip_damage = skip_damage
        self.refresh()

    def refresh(self) -> Trace:
        self._reader = _scalevec.TraceReader(self.path, skip_damage=self._skip_damage)
        self.columns = {column.name: column for column in self._reader.columns}
        self.sites = self._reader.sites
        return self

    @property
    def steps(self) -> np.ndarray:
        return self._reader.steps

    @property
    def finished(self) -> bool:
        return self._reader.finished

    @property
    def gaps(self) -> list[tuple[int, int, int]]:
        return self._reader.gaps

    @property
    def resumes(self) -> list[tuple[int, int]]:
        return self._reader.resumes

    @property
    def damage(self) -> list[str]:
        return self._reader.damage

    def __len__(self) -> int:
        return self._reader.rows

    def __getitem__(self, key: str | tuple[str, str]) -> np.ndarray:
        if isinstance(key, str):
            return self._reader.read(key)
        name, address = key
        column = self.columns.get(name)
        if column is None:
            return self._reader.read(name)  # the error lists the columns
        if column.per == "run":
            raise ValueError(f"{name!r} is one number of the run: it has no sites")
        # As an address first: where some branches have vectors of their own, that of the others is a selector of all.
        named = [i for i, site in enumerate(self.sites) if site.address == address]
        chosen = named or [choice.site for choice in _scalevec.select(address, self.sites)]
        if len(chosen) != 1:
            names = ", ".join(self.sites[i].address for i in chosen[:4]) + (", ..." if len(chosen) > 4 else "")
            raise make_error("E_ADDR", f"trace: {address!r} chooses {len(chosen)} sites; name one: {names}")
        site = chosen[0]
        if column.per == "site":
            return self._reader.read(name, entry=site, entries=1)[:, 0]
        return self._reader.read(name, entry=self._reader.start[site], entries=self.sites[site].width)

    def summary(self) -> dict[str, Any]:
        steps = self.steps
        return {
            "path": str(self.path),
            "finished": self.finished,
            "created": self._reader.created,
            "command": self._reader.command,
            "rows": len(self),
            "first_step": int(steps[0]) if len(steps) else None,
            "last_step": int(steps[-1]) if len(steps) else None,
            "sites": len(self.sites),
            "channels": self._reader.start[-1],
            "columns": [
                {"name": c.name, "unit": c.unit, "per": c.per, "type": c.type, "description": c.description}
                for c in self.columns.values()
            ],
            "gaps": self.gaps,
            "resumes": self.resumes,
            "damage": self.damage,
        }

    def __repr__(self) -> str:
        state = "finished" if self.finished else "live"
        return (
            f"Trace({str(self.path)!r}, {state}, {len(self)} rows, {len(self.sites)} sites: {', '.join(self.columns)})"
        )


def open_trace(path: str | os.PathLike[str], *, skip_damage: bool = False) -> Trace:
    """Open a trace, at any moment: also while the training that makes it runs, and after it was killed."""
    return Trace(path, skip_damage=skip_damage)


def merge_trace(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    deflate: int = 1,
    skip_damage: bool = False,
    progress: Progress | None = None,
) -> pathlib.Path:
    """Make the results file of a trace whose training was killed. In place of the live folder, if no output is named.

    Args:
        progress: called now and then with (what, done, total). Ctrl-C, or what it raises, leaves the trace as it was.
    """
    _scalevec.merge_trace(path, output or "", deflate=deflate, skip_damage=skip_damage, progress=progress)
    return pathlib.Path(output or path)


def by_role(trace: Trace, name: str) -> dict[str, np.ndarray]:
    """The entries of a column, (rows, entries), by the role of their sites; those of the run under ``"run"``."""
    column, values = trace.columns[name], trace[name]
    if column.per == "run":
        return {"run": values[:, None]}
    counts = [1 if column.per == "site" else site.width for site in trace.sites]
    roles = np.repeat([site.role for site in trace.sites], counts)
    return {str(role): values[:, roles == role] for role in dict.fromkeys(roles.tolist())}


def plot(trace: Trace, names: Sequence[str], path: pathlib.Path) -> pathlib.Path:
    """One panel per metric; per role the median of its entries and the band that half of them lie in.

    Raises:
        ValueError: E_VALUE for a path whose ending names no format of pictures.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise make_error(
            "E_VALUE", f"trace: a picture cannot be a '{path.suffix}'; end its name in one of {', '.join(sorted(known))}",
            file=str(path),
        )  # fmt: skip

    figure, axes = plt.subplots(
        len(names), 1, figsize=(9, 3.2 * len(names)), sharex=True, squeeze=False, layout="constrained"
    )
    steps = trace.steps
    colours = {str(role): f"C{i}" for i, role in enumerate(dict.fromkeys(site.role for site in trace.sites))}
    for axis, name in zip(axes[:, 0], names, strict=True):
        column = trace.columns[name]
        for role, values in by_role(trace, name).items():
            measured = np.isfinite(values).any(axis=1)
            if not measured.any():  # such sites have no figure of that name
                continue
            low, middle, high = np.nanpercentile(
                np.where(np.isfinite(values[measured]), values[measured], np.nan), [25, 50, 75], axis=1
            )
            label = role if values.shape[1] == 1 else f"{role} ({values.shape[1]:,} entries)"
            colour = colours.get(role, "C0")
            axis.plot(steps[measured], middle, label=label, color=colour)
            if values.shape[1] > 1:
                axis.fill_between(steps[measured], low, high, color=colour, alpha=0.2, linewidth=0)
        for first, last, _ in trace.gaps:
            axis.axvspan(first, last, color="grey", alpha=0.2)
        axis.set_ylabel(name + (f" ({column.unit})" if column.unit not in ("", "1") else ""))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
        else:
            axis.text(0.5, 0.5, "not measured in this trace", transform=axis.transAxes, ha="center", va="center")
    axes[-1, 0].set_xlabel("step")
    figure.suptitle(f"{trace.path.name}: median, and the middle half of the entries", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
