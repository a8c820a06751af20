"""What an edit does to a model's output distribution over a text."""

from __future__ import annotations

import hashlib
import html
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalevec import _scalevec
from scalevec.editing import Edit, EditBlock, Path, edit_of
from scalevec.errors import make_error
from scalevec.scales import plural
from scalevec.screening import trials_of
from scalevec.text import Text, documents_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalevec.model import Model, Progress
    from scalevec.screening import Saliency, Sweep

# Name, what it is, unit.
FIGURES = (
    ("loss_base", "loss, base", "nats/token"),
    ("loss_edited", "loss, edited", "nats/token"),
    ("loss_change", "change of loss", "nats/token"),
    ("perplexity_base", "perplexity, base", ""),
    ("perplexity_edited", "perplexity, edited", ""),
    ("kl", "KL(base || edited)", "nats/token"),
    ("kl_reverse", "KL(edited || base)", "nats/token"),
    ("flips", "flips of the first choice", "fraction"),
    ("tv", "total variation", "fraction"),
)
HEADS = ("", "value", "95 % interval", "unit")


def measure(
    model: Model,
    text: Text,
    edit: Edit | EditBlock | Path | None = None,
    *,
    context: int = 512,
    tokens: int | None = None,
    seed: int = 0,
    resamples: int = 2000,
    bos: int | str | None = "auto",
    per_token: bool = False,
    allow_unedited: bool = False,
    allow_no_effect: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Compares the model with and without an edit on a text. The model is not changed.

    Windows of `context` ids, consecutive and without overlap; every prediction inside a window counts. Figures are
    means over the same predictions; intervals (95 %) are a paired bootstrap over chunks of 64 predictions, and None
    below 20 chunks. Memory does not grow with the text, but for the text itself and its ids, 8 bytes each.

    Args:
        text: A string, several (documents; an iterator is asked for no more than are read), or token ids: of one
            document, or of several.
        edit: An edit, or the file of one, on top of what stands edited in the model. The whole is measured against the
            model's file, and is the result's `edit`.
        tokens: Read the first that many ids only; the rest is neither tokenised nor converted.
        seed: Of the bootstrap.
        bos: Token that begins each window: "auto" follows the tokenizer's own rule for text and adds none to ids.
        per_token: Keep figures of every prediction too (`per_token`, and in the results file).
        allow_unedited: Measure a model that nobody edited.
        allow_no_effect: Take an edit that moves no logit for a result.

    Raises:
        InvalidError: E_NO_EFFECT for an unedited model or an edit that moves no logit, unless allowed; E_BUNDLE if the
            edit was made on another base; E_VALUE for a text without a prediction or ids outside the vocabulary;
            E_STATE if the no-op control is not exactly zero, or somebody else wrote a vector.
    """
    documents, own_bos = documents_of(model, text, tokens)
    if isinstance(bos, str):
        if bos != "auto":
            raise make_error("E_VALUE", f"measure: bos is an id, None or 'auto', not {bos!r}", key="bos")
        bos = own_bos
    options: dict[str, Any] = {
        "context": context, "bos": bos, "seed": seed,
        "resamples": resamples, "per_token": per_token, "allow_unedited": allow_unedited,
        "allow_no_effect": allow_no_effect, "journal": model.journal, "progress": progress,
    }  # fmt: skip
    if edit is None:
        made = _scalevec.measure(model.transformer, documents, **options)
        return Measurement(model, model.journal.edit(), made, tokens, documents)
    measured, stood = edit_of(edit), model.edited
    with model.edit() as block:
        block.apply(measured)
        made = _scalevec.measure(model.transformer, documents, **options)
        if stood:  # the edits that stood in the model before are measured with it
            measured = model.journal.edit()
    return Measurement(model, measured, made, tokens, documents)


def check_results_name(path: Path) -> None:
    """E_PATH unless a file of this name will be taken for what it is: HDF5."""
    if pathlib.Path(path).suffix not in (".h5", ".hdf5"):
        raise make_error("E_PATH", f"save: results are HDF5, so {path} must end in .h5 or .hdf5", file=str(path))


def provenance(model: Model, edit: Edit | None, seed: int) -> dict[str, Any]:
    """How a result was obtained, JSON-ready."""
    return {
        "edit": None if edit is None else edit.describe(short=True),
        "model": {"path": str(model.path), "family": model.family},
        "seed": seed,
        "dtype": model.dtype,
        "device": model.device,
        "threads": torch.get_num_threads(),
        "scalevec": _scalevec.version,
        "torch": torch.__version__,
    }


class Measurement:
    """What an edit did to a model over a text, and how that was obtained.

    `loss_base`, `loss_edited`, `loss_change`, `perplexity_base`, `perplexity_edited`, `kl`, `kl_reverse`, `flips` and
    `tv` are figures with `.value`, `.low` and `.high`; `float(change.kl)` is the value.

    Attributes:
        predictions: How many tokens were predicted. chunks: What the intervals resample.
        control: The no-op control: the base sent the way of an edit, against the base; exactly zero.
        touched: Vectors that the edited stream ran with and the base did not.
        per_token: Tensors with one entry for each prediction, where asked for.
        edit: The edit that was measured.
        ids_read: Ids of the text. ids_sha256: of them, as little-endian int64, one document after the other.
    """

    loss_base: _scalevec.Figure
    loss_edited: _scalevec.Figure
    loss_change: _scalevec.Figure
    perplexity_base: _scalevec.Figure
    perplexity_edited: _scalevec.Figure
    kl: _scalevec.Figure
    kl_reverse: _scalevec.Figure
    flips: _scalevec.Figure
    tv: _scalevec.Figure

    def __init__(
        self, model: Model, edit: Edit, made: _scalevec.Measurement, tokens: int | None, documents: list[np.ndarray]
    ) -> None:  # fmt: skip
        self._model = model
        self._made = made
        self.edit = edit
        self._provenance = provenance(model, edit, made.seed)
        self.tokens = tokens
        self.ids_read = sum(map(len, documents))
        self.ids_sha256 = hashlib.sha256(b"".join(ids.astype("<i8").tobytes() for ids in documents)).hexdigest()
        for name, _, _ in FIGURES:
            setattr(self, name, getattr(made.change, name))
        self.predictions: int = made.change.predictions
        self.chunks: int = made.change.chunks
        self.largest_difference: float = made.change.largest_difference
        self.control: _scalevec.NoOpControl = made.control
        self.touched: list[_scalevec.TouchedVector] = made.touched
        self.reached_output: bool = made.reached_output

    @property
    def per_token(self) -> _scalevec.PerToken:
        return self._made.per_token

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: each figure with value, low and high (null without an interval), and how it was obtained."""
        made, control = self._made, self.control
        figures = {
            name: {"value": figure.value, "low": figure.low, "high": figure.high}
            for name, figure in ((name, getattr(self, name)) for name, _, _ in FIGURES)
        }
        return {
            **figures,
            "predictions": self.predictions,
            "chunks": self.chunks,
            "largest_logit_difference": self.largest_difference,
            "reached_output": self.reached_output,
            "no_op": {
                "predictions": control.predictions,
                "largest_logit_difference": control.largest_difference,
                "loss_change": control.loss_change,
                "kl": control.kl,
                "flips": control.flips,
            },
            "touched": [
                {"address": v.address, "native": v.native, "base": v.base, "edited": v.edited} for v in self.touched
            ],
            **self._provenance,
            "windows": made.windows,
            "documents": made.documents,
            "context": made.context,
            "tokens": self.tokens,
            "ids_read": self.ids_read,
            "ids_sha256": self.ids_sha256,
            "bos": made.bos,
            "resamples": made.resamples,
            "seconds": made.seconds,
        }

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for name, label, unit in FIGURES:
            figure = getattr(self, name)
            interval = "-" if figure.low is None else f"[{figure.low:.6g}, {figure.high:.6g}]"
            rows.append((label, f"{figure.value:.6g}", interval, unit))
        return rows

    def _notes(self) -> list[str]:
        made = self._made
        notes = [
            f"{self.predictions:,} predictions in {plural(made.windows, 'window')} of {made.context} ids; "
            f"{plural(self.chunks, 'chunk')}; "
            f"{made.dtype} on {made.device}, {made.threads} threads; seed {made.seed}",
            f"no-op control: largest difference of any logit {self.control.largest_difference:g} over "
            f"{self.control.predictions} predictions",
        ]
        low, high = self.loss_change.low, self.loss_change.high
        if low is None or high is None:
            notes.append("no intervals: fewer than 20 chunks of 64 predictions; give more text")
        elif low <= 0 <= high:
            notes.append("the interval of the change of loss holds zero: this text does not show an effect on the loss")
        if not self.reached_output:
            notes.append("no logit differs: the edit did not reach the output")
        return notes

    def text(self) -> str:
        """The figures for people, in lines."""
        rows = [HEADS, *self._rows()]
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self._notes()])

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows()
        )
        notes = "<br>".join(html.escape(note) for note in self._notes())
        head = "<tr><th></th><th>value</th><th>95 % interval</th><th>unit</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table><p>{notes}</p>"

    def save(
        self, path: Path, *, saliency: Saliency | None = None, sweeps: Mapping[str, Sweep] | None = None,
        overwrite: bool = False, command: str | None = None,
    ) -> None:  # fmt: skip
        """Writes a results file (HDF5, schema 1): model, sites, scales, edits and behaviour.

        Args:
            saliency: Of this model, to stand beside its scales.
            sweeps: Of this model: by how their figures were made ("screened", "verified"), trials and changes.
            command: What was run; by default this process's command line.

        Raises:
            FileError: E_PATH if the file exists, unless `overwrite`.
        """
        check_results_name(path)
        model = self._model
        scales = model._map
        file = _scalevec.ResultsFile(
            os.fspath(path),
            self._made,
            # A command line may hold names that are not UTF-8.
            command=os.fsencode(" ".join(sys.argv)) if command is None else command,
            overwrite=overwrite,
        )
        try:
            _scalevec.record_model(file, model.checkpoint, scales)
            _scalevec.record_sites(file, scales)
            if saliency is not None:
                _scalevec.record_saliency(file, saliency._made)
            _scalevec.record_edit(file, self.edit)
            _scalevec.record_measurement(file, self._made)
            if sweeps:
                trials: list[_scalevec.Trial] = []
                changes: list[_scalevec.Change] = []
                methods: list[str] = []
                for method, (tried, made) in sweeps.items():
                    if len(tried) != len(made):
                        message = f"save: '{method}' has {len(tried)} trials and {len(made)} changes; give one for each"
                        raise make_error("E_SHAPE", message, key=method)
                    trials += trials_of(scales, tried)
                    changes += made
                    methods += [method] * len(made)
                _scalevec.record_sweep(file, scales, trials, changes, methods)
            file.finish()
        finally:
            del file  # a kept traceback would keep what is written beside the name
