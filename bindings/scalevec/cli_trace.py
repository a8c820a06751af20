"""`scalevec trace`: what a training has left, or is leaving."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from scalevec import render
from scalevec.cli_common import Json, Quiet, common_options, print_json, require_folder, warn
from scalevec.render import UsageError
from scalevec.trace_file import merge_trace, open_trace, plot

app = typer.Typer(
    help="List, merge and plot the traces of trainings, also of killed or running ones.", no_args_is_help=True
)

TracePath = Annotated[pathlib.Path, typer.Argument(metavar="TRACE", help="run.h5, finished or not.")]
SkipDamage = Annotated[bool, typer.Option("--skip-damage", help="Leave damaged parts out, as gaps.")]


@app.command("list")
@common_options
def list_trace(trace: TracePath, as_json: Json = False, skip_damage: SkipDamage = False) -> None:
    """Say what a trace holds: columns, steps, gaps."""
    summary = open_trace(trace, skip_damage=skip_damage).summary()
    if as_json:
        print_json(summary)
        return
    warn(summary["damage"])
    render.table(
        ["column", "unit", "per", "type", "description"],
        [[c["name"], c["unit"], c["per"], c["type"], c["description"]] for c in summary["columns"]],
    )
    span = f", steps {summary['first_step']} to {summary['last_step']}" if summary["rows"] else ""
    render.say(
        f"{summary['rows']:,} rows{span}; {summary['sites']} sites, {summary['channels']:,} channels; "
        + (
            "finished."
            if summary["finished"]
            else "live: a training writes it, or was killed (then `scalevec trace merge`)."
        )
    )
    for first, last, rows in summary["gaps"]:
        render.say(f"gap: {rows} rows of steps {first} to {last} were lost")
    for step, dropped in summary["resumes"]:
        render.say(f"resumed after step {step}: {dropped} rows were dropped and made again")


@app.command()
@common_options
def merge(
    trace: TracePath,
    output: Annotated[
        pathlib.Path | None, typer.Option("-o", "--output", metavar="OUT.h5", help="The trace's own path by default.")
    ] = None,
    deflate: Annotated[int, typer.Option(min=0, max=9, help="Compression: 0 none, 9 smallest.")] = 1,
    skip_damage: SkipDamage = False,
    quiet: Quiet = False,
) -> None:
    """Make one results file of what a killed training has left."""
    with render.progress(not quiet) as callback:
        written = merge_trace(trace, output, deflate=deflate, skip_damage=skip_damage, progress=callback)
    render.say(f"written: {written}")


@app.command("plot")
@common_options
def plot_trace(
    trace: TracePath,
    metrics: Annotated[
        list[str], typer.Argument(metavar="METRIC...", help="Columns; `scalevec trace list` names them.")
    ],
    output: Annotated[pathlib.Path, typer.Option("-o", "--output", metavar="OUT.png", help="The picture.")],
    by: Annotated[str, typer.Option(help="What the lines are: role.")] = "role",
    skip_damage: SkipDamage = False,
) -> None:
    """Draw columns over the steps: one panel per column, one line per role, with its spread."""
    if by != "role":
        raise UsageError(f"--by {by}: lines can be drawn by role")
    require_folder(output)
    opened = open_trace(trace, skip_damage=skip_damage)
    unknown = [name for name in metrics if name not in opened.columns]
    if unknown:
        raise UsageError(f"there is no column {', '.join(unknown)}; there are {', '.join(opened.columns)}")
    render.say(f"written: {plot(opened, metrics, output)}")
