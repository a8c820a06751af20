"""The command `scalevec edit`: words into an edit file."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

import scalevec as sv
from scalevec import render
from scalevec.cli_common import AllowLinks, Model, one_selector, open_model
from scalevec.errors import make_error
from scalevec.render import UsageError

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


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


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
    allow_links: AllowLinks = False,
) -> None:
    """Write an edit file: what to change, on which vectors, and how to undo it. The model itself stays untouched."""
    words = words or []
    if output is None:
        raise UsageError("say where the edit goes: -o e.sv.json")
    unknown = [w for w in words if w.startswith("--")]
    if unknown:
        raise UsageError(f"no such option: {unknown[0]}")
    if rebase is not None:
        if words:
            raise UsageError("--rebase takes the operations from the file: give no selector and no verb")
        if append or allow_no_effect:
            raise UsageError("--rebase makes a file of its own from one edit: no --append, no --allow-no-effect")
        made = sv.rebase(rebase, open_model(model, allow_links=allow_links))
        made.note = _joined(made.note, note)
        made.save(output)
    else:
        at = next((i for i, word in enumerate(words) if word in VERBS), None)
        if at is None or at == 0:
            got = " ".join(words) or "nothing"
            raise UsageError(f"SELECTOR VERB [ARGUMENTS] expected, with a verb of {', '.join(VERBS)}; got: {got}")
        selector = one_selector(words[:at])
        if any(word in VERBS for word in words[at + 1 :]):
            raise UsageError("one edit at a time: make the file with the first, and give --append with the others")
        if append and not output.exists():
            raise make_error("E_PATH", f"--append: {output} does not exist; leave --append out to make it")
        if not append and output.exists():
            raise make_error("E_PATH", f"{output} exists; give --append to add to it, or another name")
        loaded = open_model(model, allow_links=allow_links)
        if append:
            before = sv.read_edit(output)
            loaded.apply(before)
            note = _joined(before.note, note)
        with loaded.edit() as transaction:
            _apply_verb(transaction, selector or "", words[at], words[at + 1 :], allow_no_effect)
            made = transaction.to_edit(note=note)
        made.save(output, overwrite=append)
    render.say(made.describe(short=True))
    render.say(f"{output}: {output.stat().st_size:,} bytes")
