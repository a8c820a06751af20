"""What several commands take, and how they answer."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_type_hints

import torch
import typer

import scalevec as sv
from scalevec import _scalevec, render
from scalevec.errors import make_error
from scalevec.model import MOST_THREADS
from scalevec.render import UsageError

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A GGUF file, a safetensors file or a Hugging Face folder.")
]
EditFile = Annotated[pathlib.Path, typer.Option("--edit", metavar="E.sv.json", help="An edit file.")]
Destination = Annotated[
    pathlib.Path, typer.Option("-o", "--output", metavar="DEST", help="The file or folder to write.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
AllowLinks = Annotated[
    bool, typer.Option("--allow-links", help="Let files be links that leave the model's folder, as in a hub's cache.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def _version(value: bool) -> None:
    if value:
        print(f"scalevec {sv.__version__} (torch {torch.__version__})")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
]


class Common(NamedTuple):
    """The options of every command; results record them."""

    dtype: Annotated[str, typer.Option(help="Compute dtype of the linear maps: float32, bfloat16 or float64.")] = (
        "float32"
    )
    device: Annotated[str, typer.Option(help="cpu, or cuda where there is one (cuda:1 for the second).")] = "cpu"
    threads: Annotated[int | None, typer.Option(min=1, max=MOST_THREADS, help="Processor threads; all by default.")] = (
        None
    )
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")] = 0


DTYPES = ("float32", "bfloat16", "float64")


def _check_names(dtype: str, device: str) -> None:
    """UsageError for names that no machine could take; a device that is only absent here is refused later."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype!a}: there is no such compute dtype; choose from {', '.join(DTYPES)}")
    with contextlib.suppress(RuntimeError):  # torch's own: it cannot parse the name
        parsed = torch.device(device)
        # torch takes cuda:300 for cuda:44 without a word.
        if device == "cpu" or (parsed.type == "cuda" and str(parsed) == device):
            return
    raise UsageError(f"--device {device!a}: there is no such device; choose from cpu, cuda, cuda:0, cuda:1, ...")


def refuse_seed_and_dtype(common: Common, fields: str) -> None:
    """UsageError for options that a file has the say about: five runs of five seeds are not to be one run five times."""
    for name in ("seed", "dtype"):
        if getattr(common, name) != Common._field_defaults[name]:
            raise UsageError(f"--{name}: the experiment file says what is trained: {fields}")


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `Common`: checks them, sets the threads, passes them on if it takes `common`."""
    signature = inspect.signature(command, eval_str=True)
    computes = "common" in signature.parameters

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        given.pop("version")  # answered before
        common = Common(**{name: given.pop(name) for name in Common._fields})
        _check_names(common.dtype, common.device)
        _scalevec.check_options(dtype=common.dtype, device=common.device)
        if common.threads is not None:
            torch.set_num_threads(common.threads)
        try:
            command(**given, **({"common": common} if computes else {}))
        except KeyboardInterrupt:  # of which newer typers make status 130 without a word
            raise typer.Abort from None

    if not computes:
        names = ", ".join(f"--{name}" for name in Common._fields)
        with_options.__doc__ = f"{command.__doc__}\n\nNothing here depends on {names}: every command takes them."
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "common"]
    for name, kind in get_type_hints(Common, include_extras=True).items():
        default = Common._field_defaults[name]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
    parameters.append(inspect.Parameter("version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Version))
    # typer reads a command's parameters from these two.
    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def require_new(output: pathlib.Path) -> None:
    """Refuses a file to write that is there already, or whose folder is not."""
    if output.exists():
        raise make_error("E_PATH", f"{output} exists; give another name", file=str(output))
    require_folder(output)


def require_folder(output: pathlib.Path) -> None:
    """Refuses a file to write whose folder is not there."""
    if not output.absolute().parent.is_dir():
        raise make_error("E_PATH", f"{output}: there is no such folder; make it first", file=str(output))


def open_model(path: str, *, allow_links: bool, **options: Any) -> sv.Model:
    """The model, with what a reader of results should know about its file on standard error."""
    if path.startswith("~") and not pathlib.Path(path).exists():
        raise make_error("E_PATH", f"{path}: the shell expands ~ outside quotes only; write $HOME{path[1:]}", file=path)
    model = sv.load(path, allow_links=allow_links, **options)
    warn(model.warnings)
    return model


def warn(warnings: list[str]) -> None:
    for warning in warnings:
        render.complain(f"warning: {warning}")


def one_selector(words: list[str]) -> str | None:
    """The selector; several words mean that the shell has expanded an unquoted brace range."""
    if len(words) > 1:
        raise UsageError(
            f"one selector expected, {len(words)} words came ({', '.join(words[:3])}{', ...' if len(words) > 3 else ''}). "
            "The shell has expanded something: put the selector in quotes, as in 'layers.{0..5}.*.input_norm'."
        )
    return words[0] if words else None
