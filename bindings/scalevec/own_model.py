"""Models that scalevec trained: vectors with components made plain, and the same function as a plain Llama."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from scalevec import _scalevec
from scalevec.errors import make_error

if TYPE_CHECKING:
    from scalevec.editing import Path
    from scalevec.model import Model

Progress = Callable[[str, int, int], None]


def _require_unedited(model: Model, what: str) -> None:
    if model.edited:
        raise make_error(
            "E_STATE",
            f"{what}: the model in memory is edited, and what is written comes from its file; export the edit first, "
            "and take that copy",
            file=str(model.path),
        )


def materialise(
    model: Model, destination: Path, selector: str = "**", *, progress: Progress | None = None
) -> _scalevec.MaterialiseReport:
    """Writes a copy in which the selected vectors with components (OR, ER) are plain, and so can be edited.

    They become their effective values, computed in float64 and rounded once to the stored dtype; the report says how
    far each moved. Which they were stands in the metadata of the copy's safetensors file.

    Raises:
        AddressError: The selector matches nothing, names channels, or only some branches of one norm.
        InvalidError: E_NO_EFFECT if all that it names is plain already; E_STATE if this model is edited.
        FileError: E_PATH if the destination exists and is not empty.
    """
    _require_unedited(model, "materialise")
    return _scalevec.materialise(model.checkpoint, selector, os.fspath(destination), progress=progress)


def export_as(
    model: Model, family: str, destination: Path, *, progress: Progress | None = None
) -> _scalevec.LlamaReport:
    """Writes the same function as a plain model of another family, for other tools: "llama", in float32.

    Branch vectors go into the columns of the maps that read them, output scales into rows. The report says how far
    rounding moved an entry, relative to it.

    Raises:
        InvalidError: E_CONFIG, naming the address and the reason, where no plain Llama has the same function; E_VALUE
            for another family; E_STATE if this model is edited.
        FileError: E_PATH if the destination exists and is not empty.
    """
    if family != "llama":
        raise make_error("E_VALUE", "export: no such family to export as", key="as", expected="llama", found=family)
    _require_unedited(model, "export")
    return _scalevec.export_llama(model.checkpoint, os.fspath(destination), progress=progress)
