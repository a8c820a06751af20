"""The command `scalevec`: every result on standard output, every refusal as one line on standard error.

Exit status: 0 done, 1 refused (the line says why and what to do), 2 the command was put wrongly, 130 interrupted,
141 the reader of the output went away, as in `| head`, 143 ended by SIGTERM.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer

import scalevec as sv
from scalevec import cli_data, cli_edit, cli_experiment, cli_trace, cli_train, render
from scalevec.cli_common import (
    AllowLinks,
    Common,
    Destination,
    EditFile,
    Json,
    Model,
    Quiet,
    Version,
    common_options,
    one_selector,
    open_model,
    print_json,
    require_new,
    warn,
)
from scalevec.measuring import HEADS, check_results_name, provenance
from scalevec.render import UsageError
from scalevec.scales import COLUMNS, cells, plural

# typer brings a click of its own or takes the installed one, by version: this is the one in use.
ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="scalevec",
    help="See, change, measure and undo the normalization scale vectors of a transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _main(version: Version = False) -> None:
    pass


@app.command()
@common_options
def inspect(
    model: Model,
    selector: Annotated[
        list[str] | None, typer.Argument(metavar="[SELECTOR]", help="Which vectors; all by default.")
    ] = None,
    channels: Annotated[
        bool,
        typer.Option("--channels", help="One line per channel, outliers marked; so too where the selector names some."),
    ] = False,
    as_json: Json = False,
    allow_links: AllowLinks = False,
) -> None:
    """List the scale vectors of a model: addresses, native names, roles, effective values. Loads no weights."""
    chosen = one_selector(selector or [])
    loaded = open_model(model, allow_links=allow_links)
    picked = [(g, None) for g in loaded.scales] if chosen is None else loaded.scales.select(chosen)
    channels = channels or any(where is not None for _, where in picked)
    if as_json:
        rows = []
        for g, where in picked:
            row = g.to_dict()
            if channels:
                values = g.effective
                indices = range(g.width) if where is None else where
                row["channels"] = [{"channel": int(j), "effective": float(values[j])} for j in indices]
            rows.append(row)
        print_json(rows)
    elif channels:
        lines = []
        for g, where in picked:
            values = g.effective
            mean, sd = float(values.mean()), float(values.std())
            for j in range(g.width) if where is None else where:
                z = (float(values[j]) - mean) / sd if sd else 0.0
                mark = f"{z:+.1f} sd" if abs(z) > 3 else ""
                lines.append([g.address, str(int(j)), f"{float(values[j]):.9g}", mark])
        render.table(["address", "channel", "effective", "outlier"], lines, right=["channel", "effective"])
    else:
        lines = [cells(g) for g, _ in picked]
        render.table(COLUMNS, lines, right=["offset", "eps", "width", "mean", "min", "max"])
        entries = sum(g.width for g, _ in picked)
        render.say(
            f"{plural(len(picked), 'scale vector')}, {entries:,} entries; family {loaded.family}. mean, min, max are effective values."
        )


app.command(context_settings={"ignore_unknown_options": True})(common_options(cli_edit.edit))


@app.command()
@common_options
def show(
    edit_file: Annotated[pathlib.Path, typer.Argument(metavar="E.sv.json", help="An edit file.")],
    as_json: Json = False,
) -> None:
    """Say what an edit file does, for a reviewer."""
    read = sv.read_edit(edit_file)
    if as_json:
        print_json(read.to_dict())
    else:
        render.say(read.describe())


def _ids(file: pathlib.Path) -> Any:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except OSError:
        raise
    except Exception as error:  # a damaged header raises what Python's own parser does
        raise UsageError(f"{file} is no .npy array of integers: {error}") from None


@app.command()
@common_options
def measure(
    model: Model,
    edit_file: EditFile,
    common: Common,
    more: Annotated[list[pathlib.Path] | None, typer.Argument(metavar="[FILE...]", help="More text files.")] = None,
    text: Annotated[
        list[pathlib.Path] | None, typer.Option("--text", help="UTF-8 text, one document per file.")
    ] = None,
    ids: Annotated[
        pathlib.Path | None, typer.Option("--ids", help="Token ids, an integer .npy array, instead of text.")
    ] = None,
    context: Annotated[int, typer.Option(min=2, help="Ids per window.")] = 512,
    tokens: Annotated[int | None, typer.Option(min=2, help="Stop after so many ids.")] = None,
    output: Annotated[pathlib.Path | None, typer.Option("-o", "--output", help="Results file (HDF5).")] = None,
    as_json: Json = False,
    allow_links: AllowLinks = False,
    quiet: Quiet = False,
) -> None:
    """Compare the model before and after an edit on a text: loss, KL, flips, with paired intervals and controls."""
    if output is not None:  # before minutes of work
        check_results_name(output)
        require_new(output)
    files = list(text or []) + list(more or [])
    if bool(files) == bool(ids):
        raise UsageError("give either --text FILE... or --ids FILE.npy")
    source: Any = _ids(ids) if ids else files
    with render.progress(not quiet) as callback:
        loaded = open_model(model, allow_links=allow_links, dtype=common.dtype, device=common.device, progress=callback)
        result = sv.measure(
            loaded, source, edit=edit_file, context=context, tokens=tokens, seed=common.seed, progress=callback,
            per_token=output is not None,
        )  # fmt: skip
    if tokens is not None and result.ids_read < tokens:
        render.complain(f"note: the text has {result.ids_read:,} ids; --tokens asked for {tokens:,}")
    if as_json:
        print_json(result.to_dict())
    else:
        render.table(HEADS, result._rows())
        for note in result._notes():
            render.say(note)
    if output is not None:  # at the end: a full disk does not take the figures along
        sys.stdout.flush()
        result.save(output)
        if not as_json:
            render.say(f"written: {output}")


@app.command()
@common_options
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    common: Common,
    edit_file: Annotated[pathlib.Path | None, typer.Option("--edit", metavar="E.sv.json", help="An edit file.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 80,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the most probable tokens of this total.")] = 1.0,
    as_json: Json = False,
    allow_links: AllowLinks = False,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt; with --edit, before and after, side by side."""
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": common.seed,
        "chat": chat,
    }
    with render.progress(not quiet) as callback:
        loaded = open_model(model, allow_links=allow_links, dtype=common.dtype, device=common.device, progress=callback)
        edit = None if edit_file is None else sv.read_edit(edit_file)
        before = loaded.generate(prompt, **options)
        after = None if edit is None else loaded.apply(edit).generate(prompt, **options)
    if "length" in (before.finish, after.finish if after is not None else ""):
        render.complain(f"note: stopped at {max_tokens} tokens; --max-tokens gives more")
    if as_json:
        said = {"prompt": prompt, "before": before, "after": after, "finish": before.finish}
        print_json({**said, **options, **provenance(loaded, edit, common.seed)})
    elif after is None:
        render.say(before)
    else:
        render.side_by_side("before", before, "after", after)


def _copy(
    write: Callable[..., Any], source: sv.Model, edit_file: pathlib.Path, output: pathlib.Path, quiet: bool, what: str
) -> None:
    with render.progress(not quiet) as callback:
        report = write(source, edit_file, output, progress=callback)
    warn(report.warnings)
    render.say(f"{output}: {report.bytes_changed} {what}")


@app.command()
@common_options
def export(
    model: Model,
    output: Destination,
    edit_file: Annotated[pathlib.Path | None, typer.Option("--edit", metavar="E.sv.json", help="An edit file.")] = None,
    family: Annotated[
        str | None, typer.Option("--as", metavar="llama", help="The same function as a plain Llama, for other tools.")
    ] = None,
    allow_links: AllowLinks = False,
    quiet: Quiet = False,
) -> None:
    """Write an edited copy of the model, in which only the edited bytes differ; or, with --as, the same function as
    a plain Llama: branch vectors and output scales folded into weights, where that is exact. Builds no model.
    """
    if (edit_file is None) == (family is None):
        raise UsageError("give either --edit E.sv.json or --as llama; to have both, export the edit first")
    if family not in (None, "llama"):
        raise UsageError(f"--as {family!a}: there is no such family to export as; choose from llama")
    loaded = open_model(model, allow_links=allow_links)
    if edit_file is not None:
        _copy(sv.export, loaded, edit_file, output, quiet, f"bytes differ from {model}")
        return
    with render.progress(not quiet) as callback:
        report = loaded.export_as(str(family), output, progress=callback)
    moved = (
        f"by at most {report.largest_rounding:.2g} of itself ({report.rounded_most})"
        if report.rounded_most
        else "nothing"
    )
    render.say(
        f"{output}: {report.folded} linear maps took vectors into their weights; rounding to float32 moved {moved}"
    )


@app.command()
@common_options
def materialise(
    model: Model,
    output: Destination,
    selector: Annotated[
        list[str] | None, typer.Argument(metavar="[SELECTOR]", help="Which vectors; all by default.")
    ] = None,
    as_json: Json = False,
    allow_links: AllowLinks = False,
    quiet: Quiet = False,
) -> None:
    """Write a copy in which vectors that are functions of components (OR, ER) are plain, so that edits work on them."""
    chosen = one_selector(selector or []) or "**"
    loaded = open_model(model, allow_links=allow_links)
    with render.progress(not quiet) as callback:
        report = loaded.materialise(output, chosen, progress=callback)
    names = ("address", "form", "largest_rounding", "before", "after")
    if as_json:
        print_json([{name: getattr(vector, name) for name in names} for vector in report.vectors])
        return
    largest = max(report.vectors, key=lambda vector: vector.largest_rounding)
    lines = [[v.address, v.form, f"{v.largest_rounding:.2g}", v.before[:15], v.after[:15]] for v in report.vectors]
    render.table(["address", "was", "largest rounding", "digest before", "after"], lines, right=["largest rounding"])
    render.say(
        f"{output}: plain now: {len(report.vectors)} of {len(loaded.scales)} vectors; rounding moved an entry by at most "
        f"{largest.largest_rounding:.2g} ({largest.address})"
    )


@app.command()
@common_options
def revert(
    exported: Annotated[str, typer.Argument(metavar="EXPORTED", help="A model that `export` wrote.")],
    edit_file: EditFile,
    output: Destination,
    allow_links: AllowLinks = False,
    quiet: Quiet = False,
) -> None:
    """Undo an exported edit: a copy with the original bytes, and so with the original SHA-256."""
    loaded = open_model(exported, allow_links=allow_links)
    _copy(sv.revert, loaded, edit_file, output, quiet, "bytes restored")


app.command("train")(common_options(cli_train.train))
app.command("experiment")(common_options(cli_experiment.experiment))
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_trace.app, name="trace")


@app.command()
@common_options
def demo(
    common: Common,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="SmolLM2-135M-Instruct from its package by default."),
    ] = None,
    output: Annotated[
        pathlib.Path, typer.Option("-o", "--output", help="Folder for the edit, results and picture.")
    ] = pathlib.Path("demo-output"),
    text: Annotated[
        pathlib.Path | None, typer.Option("--text", help="UTF-8 text; the project's guide by default.")
    ] = None,
    allow_links: AllowLinks = False,
) -> None:
    """Find the scale entry that a real model depends on most, measure it, export the edit, and undo it."""
    from . import demo as job

    job.run(model=model, output=output, text=text, allow_links=allow_links, **common._asdict())


# The first sentence whole, where typer would cut it at 45 characters.
def _first_sentence(text: str) -> str:
    return re.split(r"[.:;](?:\s|$)", " ".join(text.split()))[0] + "."


for _command in app.registered_commands:
    _command.short_help = _first_sentence((_command.callback and _command.callback.__doc__) or "")
for _group in app.registered_groups:
    if _group.typer_instance and isinstance(_group.typer_instance.info.help, str):
        _group.short_help = _first_sentence(_group.typer_instance.info.help)


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line and returns its exit status."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        for word in words:
            if not _is_text(word) and not os.path.exists(word):
                raise UsageError(f"{word!a} is no UTF-8 text, and names no file that exists")
        if sum(word.split("=")[0] == "--edit" for word in words) > 1:
            raise UsageError("--edit stands twice: put several edits into one file, with scalevec edit ... --append")
        result = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as done:
        return done.exit_code
    except ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except UsageError as error:
        print(f"scalevec: {error}", file=sys.stderr)
        return 2
    except (BrokenPipeError, SystemExit):
        # The reader has seen enough (click makes an exit of that): what is in the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not isinstance(error, (sv.Error, OSError)):
            raise
        line = re.sub(r"\s*\n\s*", " ", str(error))
        print(f"scalevec: {line}", file=sys.stderr)
        return 1
