"""Tables, progress and number formats for people: rich on a terminal, plain aligned text in a pipe."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class _Out(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to `main`: rich's own way out is status 1."""
        raise


out = _Out(highlight=False)
err = Console(stderr=True, highlight=False)


class UsageError(Exception):
    """The command was put wrongly: status 2."""


class ProgressCallback(Protocol):
    def __call__(self, what: str, done: int, total: int, note: str = "") -> None: ...


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Prints rows of text under their heads; `right` names the columns that align to the right."""
    if out.is_terminal:
        view = Table(box=None, header_style="bold", pad_edge=False)
        for name in columns:
            view.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in rows:
            view.add_row(*map(Text, row))
        out.print(view)
        return
    widths = [max(len(text) for text in column) for column in zip(columns, *rows, strict=True)]
    for line in (columns, *rows):
        cells = [
            text.rjust(width) if name in right else text.ljust(width)
            for name, text, width in zip(columns, line, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def number(value: float | None, digits: int = 4) -> str:
    """A figure for a table: fixed point where that shows it, scientific where it would show zeros."""
    if value is None or value != value:
        return "-"
    if value == 0:
        return "0"
    size = abs(value)
    return f"{value:.{digits}f}" if 10.0**-digits * 10 <= size < 1e6 else f"{value:.{digits - 1}e}"


def interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or low != low or high != high:
        return "no interval (under 20 chunks)"
    return f"[{number(low)}, {number(high)}]"


LINES_EVERY = 30.0  # seconds, of what takes hours


@contextlib.contextmanager
def progress(enabled: bool = True, *, lines_every: float = math.inf) -> Iterator[ProgressCallback]:
    """A callback (what, done, total, note) that draws a bar on a terminal's stderr.

    In a pipe it is silent, or says a line every so many seconds.
    """
    if not (enabled and err.is_terminal):
        last = time.monotonic()

        def say_a_line(what: str, done: int, total: int, note: str = "") -> None:
            nonlocal last
            if enabled and time.monotonic() - last >= lines_every:
                last = time.monotonic()
                complain(f"      {what}: {done:,} of {total:,} {note}".rstrip())

        yield say_a_line
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=err, transient=True,
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}
    drawn = 0.0
    with bar:

        def callback(what: str, done: int, total: int, note: str = "") -> None:
            nonlocal drawn
            now = time.monotonic()
            if what in tasks and done < total and now - drawn < 0.05:
                return
            drawn = now
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            for name, task in tasks.items():
                bar.update(task, visible=name == what)
            bar.update(tasks[what], completed=done, total=total, description=f"{what} {note}".strip())

        yield callback


def say(text: str = "") -> None:
    """A line on standard output, never read as markup."""
    out.print(text, markup=False, soft_wrap=True)
    out.file.flush()


def complain(text: str) -> None:
    print(text, file=sys.stderr)


def side_by_side(left_head: str, left: str, right_head: str, right: str) -> None:
    """Two texts in two columns on a terminal, one after the other in a pipe."""
    if out.is_terminal:
        view = Table(show_lines=False, expand=True)
        view.add_column(left_head, ratio=1, overflow="fold")
        view.add_column(right_head, ratio=1, overflow="fold")
        view.add_row(Text(left), Text(right))
        out.print(view)
    else:
        print(f"--- {left_head}\n{left}\n--- {right_head}\n{right}")
