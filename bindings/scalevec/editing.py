"""Edits: made in a block that takes them back, kept in files, applied, exported and reverted."""

from __future__ import annotations

import os
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any

from scalevec import _scalevec
from scalevec.errors import make_error
from scalevec.scales import Target, selector_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from scalevec.model import Model

Edit = _scalevec.Edit
Path = str | os.PathLike[str]


class RoundingWarning(UserWarning):
    """A change that the stored dtype cannot hold, or holds only roughly."""


def edit_of(edit: Edit | EditBlock | Path) -> Edit:
    """An edit given as itself, as a block, or as the path of its file."""
    if isinstance(edit, EditBlock):
        return edit.to_edit()
    return edit if isinstance(edit, Edit) else _scalevec.read_edit(os.fspath(edit))


class EditBlock:
    """Edits of one model that last as long as the block, and are then taken back bit for bit.

    ::

        with model.edit() as edit:
            edit.rescale("layers.{0..9}.*.input_norm", 0.9)
            change = sv.measure(model, texts)
        edit.save("calm.sv.json")

    Blocks nest. `keep` makes the edits last; an exception takes them back. What was made can be described and saved
    after the block too. Each call is all or nothing, and returns what it did: channels selected, changed, and lost
    where the stored dtype cannot hold the change (a RoundingWarning says so too).

    Targets are selectors, a vector of `model.scales`, a table of them, what `select` gives, or lists of selectors and
    vectors.
    """

    def __init__(self, model: Model, note: str = "") -> None:
        self._model = model
        self._note = note
        self._open: _scalevec.Transaction | None = None
        self._made: Edit | None = None

    def __enter__(self) -> EditBlock:
        if self._open is not None or self._made is not None:
            raise make_error("E_STATE", "edit: this block was entered before; begin another with model.edit()")
        self._open = _scalevec.Transaction(self._model.journal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is None:
            return
        try:
            self._made = self._open.edit(self._note)
        except Exception:
            # The exception in flight says more; and a vector that somebody else wrote is put back below.
            if kind is None:
                raise
        finally:
            if self._open.is_open:
                self._open.roll_back()
            self._open = None

    def _transaction(self) -> _scalevec.Transaction:
        if self._open is None:
            state = "has ended" if self._made is not None else "has not begun"
            raise make_error("E_STATE", f"edit: the block {state}; edits belong inside: with model.edit() as edit: ...")
        return self._open

    @property
    def is_open(self) -> bool:
        return self._open is not None and self._open.is_open

    def rescale(
        self, target: Target, factor: float, *, allow_no_effect: bool = False, allow_non_finite: bool = False,
        allow_tied: bool = False,
    ) -> _scalevec.OperationReport:  # fmt: skip
        """Multiplies effective values by `factor`.

        Raises:
            AddressError: The selector matches nothing, or a vector shares its storage (unless `allow_tied`).
            InvalidError: E_NO_EFFECT if no stored bit changes (unless allowed), E_VALUE if a result is not finite
                or overflows the stored dtype, E_STATE if somebody else wrote a vector.
        """
        return _report(
            self._transaction().rescale(
                selector_of(target), factor, allow_no_effect=allow_no_effect, allow_non_finite=allow_non_finite,
                allow_tied=allow_tied,
            )
        )  # fmt: skip

    def set(
        self, target: Target, value: Any, *, allow_no_effect: bool = False, allow_non_finite: bool = False,
        allow_tied: bool = False,
    ) -> _scalevec.OperationReport:  # fmt: skip
        """Sets effective values: one number for all, or one for each selected channel. Errors as `rescale`."""
        value = _numbers(value)
        return _report(
            self._transaction().set(
                selector_of(target), value, allow_no_effect=allow_no_effect, allow_non_finite=allow_non_finite,
                allow_tied=allow_tied,
            )
        )  # fmt: skip

    def ablate(
        self, target: Target, to: str = "zero", *, allow_no_effect: bool = False, allow_non_finite: bool = False,
        allow_tied: bool = False,
    ) -> _scalevec.OperationReport:  # fmt: skip
        """Takes the influence of entries away: "zero", "one" or the "mean" of the vector. Errors as `rescale`."""
        return _report(
            self._transaction().ablate(
                selector_of(target), to, allow_no_effect=allow_no_effect, allow_non_finite=allow_non_finite,
                allow_tied=allow_tied,
            )
        )  # fmt: skip

    def apply(self, edit: Edit | EditBlock | Path) -> None:
        """Applies a saved edit inside this block; E_BUNDLE, naming the address, if it was made on another base."""
        self._transaction().apply(edit_of(edit))

    def undo(self, edit: Edit | EditBlock | Path) -> None:
        """Takes back an edit that was applied."""
        self._transaction().undo(edit_of(edit))

    def keep(self) -> Edit:
        """Makes the edits last beyond the block, and ends it."""
        transaction = self._transaction()
        self._made = transaction.edit(self._note)
        transaction.commit()
        self._open = None
        return self._made

    def discard(self) -> None:
        """Takes the edits back now, and ends the block."""
        transaction = self._transaction()
        self._made = transaction.edit(self._note)
        transaction.roll_back()
        self._open = None

    def to_edit(self, note: str | None = None) -> Edit:
        """Everything done to the model since its file, this block included, as a value.

        Raises:
            InvalidError: E_STATE before the block has begun, and where somebody else wrote a vector.
        """
        if self._open is not None:
            return self._open.edit(self._note if note is None else note)
        if self._made is None:
            self._transaction()
        assert self._made is not None
        if note is not None:
            self._made.note = note
        return self._made

    def save(self, path: Path, *, overwrite: bool = False, note: str | None = None) -> None:
        """Writes the edit file (`*.sv.json`), whole or not at all; FileError if it exists, unless `overwrite`."""
        self.to_edit(note).save(os.fspath(path), overwrite=overwrite)

    def describe(self, *, short: bool = False) -> str:
        """What was done, for a reviewer."""
        return self.to_edit().describe(short=short)

    def __repr__(self) -> str:
        if self._open is None and self._made is None:
            return "EditBlock(not begun)"
        return f"EditBlock({'open' if self.is_open else 'ended'}, {self.to_edit()!r})"


def _numbers(value: Any) -> float | list[float]:
    try:
        if isinstance(value, str):
            raise TypeError
        alone = isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0
        return float(value) if alone else [float(one) for one in value]
    except (TypeError, ValueError):
        message = f"set: {value!r} is neither a number nor one number for each channel"
        raise make_error("E_DTYPE", message, key="value", found=type(value).__name__) from None


def _report(report: _scalevec.OperationReport) -> _scalevec.OperationReport:
    if report.lost:
        warnings.warn(f"edit: {report!r}", RoundingWarning, stacklevel=3)
    return report


def read_edit(path: Path) -> Edit:
    """Reads an edit file; InvalidError (E_BUNDLE, E_JSON, ...) if it is damaged."""
    return _scalevec.read_edit(os.fspath(path))


def append(path: Path, edit: Edit | EditBlock | Path) -> Edit:
    """Adds an edit to those of a file, which is replaced whole. Returns both, composed.

    Raises:
        InvalidError: E_BUNDLE, with address, where `edit` does not begin as the file's edits end.
    """
    composed = _scalevec.read_edit(os.fspath(path)).then(edit_of(edit))
    composed.save(os.fspath(path), overwrite=True)
    return composed


def rebase(edit: Edit | EditBlock | Path, model: Model | Path, *, allow_links: bool = False) -> Edit:
    """An edit made anew for another container or precision of the same model, through effective values.

    A RoundingWarning says how far the two bases are apart where they are not equal: rounding of the containers if they
    hold the same model, large if not. E_BUNDLE, naming the address, if `model` lacks a vector or has another width.
    """
    made, difference = _scalevec.rebase(edit_of(edit), _checkpoint_of(model, allow_links))
    if difference:
        warnings.warn(f"rebase: the bases differ by up to {difference:.3g}", RoundingWarning, stacklevel=2)
    return made


def export(
    model: Path | Model,
    edit: Edit | EditBlock | Path,
    destination: Path,
    *,
    allow_links: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> _scalevec.ExportReport:
    """Writes a copy of a model in which only the edited bytes differ. Builds no model: size does not matter.

    A file becomes a file, a folder a folder; the copy appears whole or not at all. `allow_links`: as for `load`.

    Raises:
        FileError: E_PATH if the destination exists and is not empty; E_IO if the system refused.
        InvalidError: E_BUNDLE if the edit was made on another base, E_STATE if it is applied there already.
    """
    return _scalevec.export_edited(
        _checkpoint_of(model, allow_links), edit_of(edit), os.fspath(destination), progress=progress
    )


def revert(
    exported: Path | Model,
    edit: Edit | EditBlock | Path,
    destination: Path,
    *,
    allow_links: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> _scalevec.ExportReport:
    """Writes a copy of an exported model with the old bytes put back: the SHA-256 of the model that was exported."""
    return _scalevec.revert_export(
        _checkpoint_of(exported, allow_links), edit_of(edit), os.fspath(destination), progress=progress
    )


def _checkpoint_of(model: Model | Path, allow_links: bool) -> _scalevec.Checkpoint:
    found = getattr(model, "checkpoint", None)
    return _scalevec.Checkpoint(os.fspath(model), allow_links=allow_links) if found is None else found  # type: ignore[arg-type]
