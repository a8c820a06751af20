"""The command `scalevec`: every result on standard output, every refusal as one line on standard error.

Exit status: 0 done, 1 refused (the line says why and what to do), 2 the command was put wrongly, 130 interrupted.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
from typing import Annotated, Any

import typer

from scalevec.render import UsageError

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

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A GGUF file, a safetensors file or a Hugging Face folder.")
]
EditFile = Annotated[pathlib.Path, typer.Option("--edit", metavar="E.sv.json", help="An edit file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
DType = Annotated[str, typer.Option(help="Compute dtype of the linear maps: float32, bfloat16 or float64.")]
Device = Annotated[str, typer.Option(help="cpu, or cuda where there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; all by default.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def _version(value: bool) -> None:
    if value:
        import torch

        import scalevec

        print(f"scalevec {scalevec.__version__} (torch {torch.__version__})")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _one_selector(words: list[str]) -> str | None:
    """The selector; several words mean that the shell has expanded an unquoted brace range."""
    if len(words) > 1:
        raise UsageError(
            f"one selector expected, {len(words)} words came ({', '.join(words[:3])}{', ...' if len(words) > 3 else ''}). "
            "The shell has expanded something: put the selector in quotes, as in 'layers.{0..5}.*.input_norm'."
        )
    return words[0] if words else None


@app.command()
def inspect(
    model: Model,
    selector: Annotated[
        list[str] | None, typer.Argument(metavar="[SELECTOR]", help="Which vectors; all by default.")
    ] = None,
    channels: Annotated[bool, typer.Option("--channels", help="One line per channel, outliers marked.")] = False,
    as_json: Json = False,
) -> None:
    """List the scale vectors of a model: addresses, native names, roles, effective values. Loads no weights."""
    import scalevec as sv

    from . import render

    chosen = _one_selector(selector or [])
    loaded = sv.load(model)
    picked = loaded.scales.select(chosen) if chosen else [(g, None) for g in loaded.scales]
    if as_json:
        rows = []
        for g, where in picked:
            row = g.to_dict()
            if channels:
                values = g.effective
                indices = range(g.width) if where is None else where
                row["channels"] = [{"channel": int(j), "effective": float(values[j])} for j in indices]
            rows.append(row)
        _print_json(rows)
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
        lines = [
            [
                g.address, g.native, g.role, g.kind, f"{g.eps:.3g}", f"{g.offset:g}", str(g.width),
                ",".join(link.branch for link in g.consumers) or "-",
                render.number(g.mean), render.number(g.min), render.number(g.max),
            ]
            for g, _ in picked
        ]  # fmt: skip
        columns = [
            "address",
            "native",
            "role",
            "kind",
            "eps",
            "offset",
            "width",
            "consumers",
            "mean",
            "min",
            "max",
        ]
        render.table(columns, lines, right=["eps", "offset", "width", "mean", "min", "max"])
        entries = sum(g.width for g, _ in picked)
        render.say(
            f"{len(picked)} scale vectors, {entries:,} entries; family {loaded.family}. mean, min, max are effective values."
        )
        for warning in loaded.warnings:
            render.complain(f"warning: {warning}")


VERBS = ("rescale", "set", "ablate")


def _apply_verb(edit: Any, selector: str, verb: str, arguments: list[str], allow_no_effect: bool) -> None:
    def one_number(what: str) -> float:
        if len(arguments) != 1:
            raise UsageError(f"{verb} takes one {what}, as in: {verb} {0.9 if verb == 'rescale' else 1.0}")
        try:
            return float(arguments[0])
        except ValueError:
            raise UsageError(f"{verb}: '{arguments[0]}' is no number") from None

    if verb == "rescale":
        edit.rescale(selector, one_number("factor"), allow_no_effect=allow_no_effect)
    elif verb == "set":
        edit.set(selector, one_number("value"), allow_no_effect=allow_no_effect)
    elif verb == "ablate":
        to = arguments[0] if arguments else "zero"
        if len(arguments) > 1 or to not in ("zero", "one", "mean"):
            raise UsageError(f"ablate takes zero (the default), one or mean; it got: {' '.join(arguments)}")
        edit.ablate(selector, to, allow_no_effect=allow_no_effect)


@app.command(context_settings={"ignore_unknown_options": True})
def edit(
    model: Model,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SELECTOR VERB [ARGUMENTS]",
            help="VERB: rescale FACTOR | set VALUE | ablate [zero|one|mean].",
        ),
    ] = None,
    output: Annotated[pathlib.Path | None, typer.Option("-o", "--output", help="The edit file to write.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to the edits that the file already holds.")] = False,
    rebase: Annotated[
        pathlib.Path | None,
        typer.Option("--rebase", metavar="E.sv.json", help="Make this edit anew for MODEL, through effective values."),
    ] = None,
    note: Annotated[str, typer.Option(help="A line for the reviewer, kept in the file.")] = "",
    allow_no_effect: Annotated[
        bool, typer.Option("--allow-no-effect", help="Accept an edit that changes no stored bit.")
    ] = False,
) -> None:
    """Write an edit file: what to change, on which vectors, and how to undo it. The model itself stays untouched."""
    import scalevec as sv

    from . import render

    words = words or []
    if output is None:
        raise UsageError("say where the edit goes: -o e.sv.json")
    unknown = [w for w in words if w.startswith("--")]
    if unknown:
        raise UsageError(f"no such option: {unknown[0]}")
    if rebase is not None:
        if words:
            raise UsageError("--rebase takes the operations from the file: give no selector and no verb")
        made = sv.rebase(rebase, model)
        made.save(output)
    else:
        at = next((i for i, word in enumerate(words) if word in VERBS), None)
        if at is None or at == 0:
            got = " ".join(words) or "nothing"
            raise UsageError(f"SELECTOR VERB [ARGUMENTS] expected, with a verb of {', '.join(VERBS)}; got: {got}")
        selector = _one_selector(words[:at])
        if append and not output.exists():
            raise UsageError(f"--append: {output} does not exist; leave --append out to make it")
        if not append and output.exists():
            raise UsageError(f"{output} exists; give --append to add to it, or another name")
        loaded = sv.load(model)
        if append:
            loaded.apply(output)
        with loaded.edit() as transaction:
            _apply_verb(transaction, selector or "", words[at], words[at + 1 :], allow_no_effect)
            made = transaction.to_edit(note=note)
        made.save(output, overwrite=append)
    render.say(made.describe(short=True))
    render.say(f"{output}: {output.stat().st_size:,} bytes")


@app.command()
def show(
    edit_file: Annotated[pathlib.Path, typer.Argument(metavar="E.sv.json", help="An edit file.")],
    as_json: Json = False,
) -> None:
    """Say what an edit file does, for a reviewer."""
    import scalevec as sv

    from . import render

    read = sv.read_edit(edit_file)
    if as_json:
        _print_json(read.to_dict())
    else:
        render.say(read.describe())


def _texts(files: list[pathlib.Path]) -> list[str]:
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{file} is not UTF-8 text (byte {error.start}): convert it, or give token ids with --ids"
            ) from None
    return texts


def _ids(file: pathlib.Path) -> Any:
    import numpy as np

    try:
        return np.load(file, allow_pickle=False)
    except ValueError as error:
        raise UsageError(f"{file} is no .npy array of integers: {error}") from None


@app.command()
def measure(
    model: Model,
    edit_file: EditFile,
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
    dtype: DType = "float32",
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Compare the model before and after an edit on a text: loss, KL, flips, with paired intervals and controls."""
    import scalevec as sv

    from . import render

    files = list(text or []) + list(more or [])
    if bool(files) == bool(ids):
        raise UsageError("give either --text FILE... or --ids FILE.npy")
    source: Any = _ids(ids) if ids else _texts(files)
    with render.progress(not quiet) as callback:
        loaded = sv.load(model, dtype=dtype, device=device, threads=threads, progress=callback)
        result = sv.measure(
            loaded, source, edit=edit_file, context=context, tokens=tokens, seed=seed, progress=callback,
            per_token=output is not None,
        )  # fmt: skip
    if output is not None:
        result.save(output)
    if as_json:
        _print_json(result.to_dict())
        return
    render.say(result.text())
    if output is not None:
        render.say(f"written: {output}")


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    edit_file: Annotated[pathlib.Path | None, typer.Option("--edit", metavar="E.sv.json", help="An edit file.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 80,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the most probable tokens of this total.")] = 1.0,
    as_json: Json = False,
    dtype: DType = "float32",
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt; with --edit, before and after, side by side."""
    import scalevec as sv

    from . import render

    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "chat": chat,
    }
    with render.progress(not quiet) as callback:
        loaded = sv.load(model, dtype=dtype, device=device, threads=threads, progress=callback)
        before = loaded.generate(prompt, **options)
        after = None
        if edit_file is not None:
            loaded.apply(edit_file)
            after = loaded.generate(prompt, **options)
    if as_json:
        _print_json({"prompt": prompt, "before": before, "after": after, **options, "dtype": dtype})
    elif after is None:
        render.say(before)
    else:
        render.side_by_side("before", before, "after", after)


@app.command()
def export(
    model: Model,
    edit_file: EditFile,
    output: Annotated[
        pathlib.Path, typer.Option("-o", "--output", metavar="DEST", help="The file or folder to write.")
    ],
    quiet: Quiet = False,
) -> None:
    """Write an edited copy of the model, in which only the edited bytes differ. Builds no model."""
    import scalevec as sv

    from . import render

    with render.progress(not quiet) as callback:
        changed = sv.export(model, edit_file, output, progress=callback).bytes_changed
    render.say(f"{output}: {changed} bytes differ from {model}")


@app.command()
def revert(
    exported: Annotated[str, typer.Argument(metavar="EXPORTED", help="A model that `export` wrote.")],
    edit_file: EditFile,
    output: Annotated[
        pathlib.Path, typer.Option("-o", "--output", metavar="DEST", help="The file or folder to write.")
    ],
    quiet: Quiet = False,
) -> None:
    """Undo an exported edit: a copy with the original bytes, and so with the original SHA-256."""
    import scalevec as sv

    from . import render

    with render.progress(not quiet) as callback:
        restored = sv.revert(exported, edit_file, output, progress=callback).bytes_changed
    render.say(f"{output}: {restored} bytes restored")


@app.command()
def demo(
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
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Find the scale entry that a real model depends on most, measure it, export the edit, and undo it."""
    from . import demo as job

    job.run(model=model, output=output, text=text, threads=threads, seed=seed)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line and returns its exit status."""
    try:
        result = app(args=arguments, standalone_mode=False)
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
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        from scalevec import Error

        if not isinstance(error, (Error, OSError)):
            raise
        line = re.sub(r"\s*\n\s*", " ", str(error))
        print(f"scalevec: {line}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
