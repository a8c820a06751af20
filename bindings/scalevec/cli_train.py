"""`scalevec train`."""

from __future__ import annotations

import math
import pathlib
import shlex
import sys
from typing import Annotated

import typer

import scalevec as sv
from scalevec import _scalevec, render, training
from scalevec.cli_common import Common, Json, print_json, refuse_seed_and_dtype
from scalevec.render import UsageError
from scalevec.training import Event


def _fields(value: bool) -> None:
    if value:
        render.table(
            ["field", "type", "default", "meaning"],
            [list(field) for field in _scalevec.experiment_fields()],
        )
        raise typer.Exit


def train(
    experiment: Annotated[pathlib.Path, typer.Argument(metavar="EXPERIMENT.toml", help="What to train, and how.")],
    output: Annotated[pathlib.Path, typer.Option("-o", "--output", metavar="RUN", help="The folder of the run.")],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last checkpoint in RUN: with as many threads, to the same bits."),
    ] = False,
    fields: Annotated[
        bool, typer.Option("--fields", callback=_fields, is_eager=True, help="List every field of an experiment.")
    ] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but warnings and errors.")] = False,
    *,
    common: Common,
) -> None:
    """Train a small model, with the paper's strategies, and trace its scale vectors. dtype and seed stand in the file."""
    if not experiment.is_file():
        raise UsageError(f"no experiment file {experiment}")
    refuse_seed_and_dtype(common, "seed = N and train.precision")
    talks = not quiet and not as_json
    with render.progress(not quiet, lines_every=render.LINES_EVERY) as bar:
        read = sv.Experiment.read(experiment)

        def on_step(event: Event) -> None:
            bar(
                "training", event["step"], read.steps,
                note=f"loss {event['loss']:.3f}, {event['tokens_per_second']:,.0f} tokens/s",
            )  # fmt: skip
            if not math.isnan(event["validation_loss"]) and talks:
                left = event["seconds_left"]
                render.say(
                    f"step {event['step']:>6} of {read.steps}: validation loss {event['validation_loss']:.4f} nats, "
                    f"training {event['loss']:.4f}, {left / 60:.0f} min left"
                )

        run = training.train(
            read,
            output,
            resume=resume,
            device=common.device,
            on_step=on_step,
            command=shlex.join(sys.argv),
            progress=bar,
        )
    if as_json:
        print_json(
            {
                "steps": run.steps,
                "validation_loss": None if math.isnan(run.validation_loss) else run.validation_loss,
                "finished": run.finished,
                "gauge_faults": run.gauge_faults,
                "groups": [{key: value for key, value in group.items() if key != "slots"} for group in run.groups],
            }
        )
    causes = {
        "gauge_residual": "channel {channel}: a reader of the vector is missed, or a gradient is wrong",
        "scale_inv_residual": "rows from {channel} on: the gradient of the map, or of the norm behind it, is wrong",
        "length_residual": "as a whole: its gradient, or that of a norm behind its readers, is wrong",
    }
    for fault in run.gauge_faults:
        cause = causes[fault["identity"]].format(channel=fault["channel"])
        render.complain(
            f"warning: {fault['address']} has a {fault['identity']} of {fault['residual']:.1e} at step {fault['step']}, {cause}"
        )
    if run.log_error:
        render.complain(f"warning: {run.log_error}")
    if run.finished:
        if talks:
            render.say(f"{run.steps} steps; the model is {run.model}: `scalevec inspect {shlex.quote(str(run.model))}`")
        return
    render.complain(
        f"stopped after step {run.steps}, with a checkpoint. To go on: "
        f"scalevec train {shlex.quote(str(experiment))} -o {shlex.quote(str(output))} --resume"
    )
    raise typer.Exit(128 + int(run.stopped_by) if run.stopped_by else 1)
