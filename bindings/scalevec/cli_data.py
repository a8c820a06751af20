"""`scalevec data`: corpora to train on."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

from scalevec import data, render
from scalevec.cli_common import Destination, Json, Quiet, common_options, print_json, warn
from scalevec.render import UsageError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _data() -> None:
    """Make training data of folders of text, and say what it is."""


def _show(record: dict[str, Any]) -> None:
    rows = [
        [side, f"{split['documents']:,}", f"{split['bytes']:,}", f"{split['ids']:,}",
         render.number(split["bytes"] / split["ids"], 3) if split["ids"] else "-"]
        for side, split in record["splits"].items()
    ]  # fmt: skip
    render.table(
        ["split", "documents", "bytes", "ids", "bytes/id"], rows, right=["documents", "bytes", "ids", "bytes/id"]
    )
    learned = record["tokenizer"]["trained_on_bytes"]
    render.say(
        f"vocabulary {record['vocabulary']:,} ({record['dtype']}), end of a document {record['end']}, tokenizer "
        + ("given" if learned is None else f"trained on {learned:,} bytes")
    )
    for source in record["sources"]:
        render.say(f"from {source['name']}: {source['documents']:,} documents, {source['bytes']:,} bytes")
    if record["skipped"]:
        render.say("skipped: " + ", ".join(f"{count:,} {why}" for why, count in record["skipped"].items()))
    render.say(record["digest"])


@app.command()
@common_options
def build(
    paths: Annotated[
        list[pathlib.Path], typer.Argument(metavar="PATHS...", help="Files, and folders with all in them.")
    ],
    output: Destination,
    vocabulary: Annotated[
        int | None,
        typer.Option("--vocab", metavar="N", min=257, max=1_000_000, help="Train a byte-level BPE tokenizer of N ids."),
    ] = None,
    tokenizer: Annotated[pathlib.Path | None, typer.Option(metavar="FILE", help="Or take this tokenizer.json.")] = None,
    end: Annotated[str | None, typer.Option(metavar="TOKEN", help="Its special token that ends a document.")] = None,
    validation: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the documents, by their SHA-256, for validation.")
    ] = 0.05,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn text (UTF-8; gzip's decompressed) into token ids to train on, equal documents taken once."""
    if (vocabulary is None) == (tokenizer is None):
        raise UsageError("give either --vocab N, to train a tokenizer, or --tokenizer FILE")
    with render.progress(not quiet) as callback:
        record = data.build(
            paths, output, vocabulary=vocabulary, tokenizer=tokenizer, end=end, validation=validation,
            progress=callback,
        )  # fmt: skip
    if vocabulary is not None and record["vocabulary"] < vocabulary:
        warn([f"the text has words for a vocabulary of {record['vocabulary']} only, not {vocabulary}"])
    if validation > 0 and not record["splits"]["validation"]["documents"]:
        warn(["no document fell on the validation side: there is nothing to validate on"])
    if as_json:
        print_json(record)
    else:
        _show(record)
        render.say(f"written: {output}")


@app.command()
@common_options
def show(
    corpus: Annotated[pathlib.Path, typer.Argument(metavar="CORPUS", help="A folder that `data build` wrote.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare it with its SHA-256.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a corpus is."""
    with render.progress(not quiet) as callback:
        record = data.describe(corpus, verify=verify, progress=callback)
    if as_json:
        print_json(record)
    else:
        _show(record)
        if verify:
            render.say("verified: every file has the SHA-256 that corpus.json holds")
