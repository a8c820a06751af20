"""`scalevec experiment`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import typer

from scalevec import experiments, plots, render
from scalevec.cli_common import Common, Json, Quiet, print_json, refuse_seed_and_dtype
from scalevec.errors import Error, make_error
from scalevec.render import UsageError


def experiment(
    file: Annotated[
        pathlib.Path, typer.Argument(metavar="FILE.toml", help="Arms, seeds, and what all of them share ([base]).")
    ],
    output: Annotated[pathlib.Path, typer.Option("-o", "--output", metavar="OUT", help="The folder of all runs.")],
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Runs at a time; --threads is for each.")] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
    *,
    common: Common,
) -> None:
    """Train arms x seeds and compare them seed by seed, with intervals. Run it again to go on where it was stopped.

    docs/experiment_files.md says what FILE.toml may hold, `scalevec train --fields` which fields an arm may. dtype and
    seeds stand in the file.
    """
    if not file.is_file():
        raise UsageError(f"no experiment file {file}")
    refuse_seed_and_dtype(common, "seeds = [...] and train.precision")
    plan = experiments.read_plan(file)
    try:
        with render.progress(not quiet, lines_every=render.LINES_EVERY) as bar:
            losses = experiments.run(
                plan, output, jobs=jobs, threads=common.threads or 1, device=common.device,
                corpus_beside=file.resolve().parent,
                on_progress=lambda what, done, total: bar("runs", done, total, what),
            )  # fmt: skip
    except KeyboardInterrupt as stopped:  # with the signal
        render.complain("stopped; the same command goes on from the last checkpoints")
        raise typer.Exit(128 + stopped.args[0] if stopped.args else 130) from None
    except RuntimeError as error:  # of a run that failed, with what it said
        if isinstance(error, Error):
            raise
        raise make_error("E_STATE", f"experiment: {error}") from None
    rows = experiments.compare(plan, losses)
    made = experiments.record(plan, losses, output / "results.h5", common.device)
    picture = plots.comparison(output / "comparison.png", plan.name, rows)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    table = []
    for row in rows:
        interval = render.interval(row.low, row.high) if row.low is not None else "no interval (one seed)"
        own = render.interval(row.loss_low, row.loss_high) if row.loss_low is not None else ""
        verdict = "" if row.baseline is None else ("resolved" if row.resolved else "not resolved")
        table.append(
            [
                row.arm, str(row.seeds), render.number(row.loss), own,
                "" if row.difference is None else f"{row.difference:+.4f}",
                "" if row.baseline is None else interval, verdict, row.baseline or "(baseline)",
            ]
        )  # fmt: skip
    render.table(
        ["arm", "seeds", "loss", "95 % interval", "difference", "95 % interval", "", "against"],
        table,
        right=["seeds", "loss", "difference"],
    )
    render.say("loss: validation, nats per prediction; differences are paired by seed.")
    render.say(f"results {made}, picture {picture}")
