"""A model from a file: its scale vectors, edits, and everything that runs it."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from scalevec import _scalevec, generating, own_model, screening, watching
from scalevec.editing import Edit, EditBlock, Path, edit_of
from scalevec.errors import make_error
from scalevec.scales import Scales
from scalevec.text import ids_of
from scalevec.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]


def load(
    path: Path,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int | None = None,
    *,
    allow_links: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Opens a model: a GGUF file, a .safetensors file with config.json beside it, or a Hugging Face folder.

    Reads headers only. Scale vectors are read when `scales` is first asked for, all other weights when the model first
    runs; so a checkpoint of any size is listed, edited and exported in little memory.

    Args:
        dtype: Compute dtype of the linear maps: "float32", "bfloat16" or "float64". Scale vectors keep the file's.
        device: "cpu", or "cuda" where there is one.
        threads: Processor threads, for this process as a whole (torch.set_num_threads); None leaves them.
        allow_links: Let shards be links that leave the folder, as in a hub's cache.
        progress: Called now and then by the loading of weights with (what, done, total).

    Raises:
        FileError: E_PATH if there is no such file (models are never downloaded), E_IO if it cannot be read.
        InvalidError: If the file is damaged, of an unknown family, or contradicts its configuration.
        DeviceError: E_DEVICE if `device` is absent.
    """
    return Model(path, dtype=dtype, device=device, threads=threads, allow_links=allow_links, progress=progress)


def inspect(path: Path, *, allow_links: bool = False) -> Scales:
    """The scale vectors of a model, from headers and vectors alone: `load(path).scales`."""
    return load(path, allow_links=allow_links).scales


# Threads beyond the processors only wait for each other; a slip of the finger would stop the machine.
MOST_THREADS = max(64, os.cpu_count() or 1)


class Model:
    """A model: see `load`. Not for several threads at once."""

    def __init__(
        self, path: Path, *, dtype: str = "float32", device: str = "cpu", threads: int | None = None,
        allow_links: bool = False, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        _scalevec.check_options(dtype=dtype, device=device)
        if threads is not None:
            if not 1 <= threads <= MOST_THREADS:
                raise make_error("E_VALUE", f"load: {threads} threads; give 1 to {MOST_THREADS}", key="threads")
            torch.set_num_threads(threads)
        self.checkpoint = _scalevec.Checkpoint(os.fspath(path), allow_links=allow_links)
        self._allow_links = allow_links
        self.dtype = dtype
        self.device = device
        self._progress = progress

    @property
    def path(self) -> pathlib.Path:
        return pathlib.Path(self.checkpoint.path)

    @property
    def family(self) -> str:
        """ "llama", "qwen3", "gemma3", ...; "scalevec" for a model that was trained here."""
        return self.checkpoint.family

    @property
    def container(self) -> str:
        """ "gguf" or "safetensors"."""
        return self.checkpoint.container

    @property
    def warnings(self) -> list[str]:
        """What a reader of results should know about the file."""
        return self.checkpoint.warnings

    @property
    def parameters(self) -> int:
        """Elements of all tensors in the files."""
        return self.checkpoint.parameters

    @functools.cached_property
    def config(self) -> Any:
        """config.json, or the GGUF metadata without its long arrays."""
        return json.loads(self.checkpoint.config_json())

    @functools.cached_property
    def _map(self) -> _scalevec.ScaleMap:
        return _scalevec.read_scales(self.checkpoint, device=self.device)

    @functools.cached_property
    def journal(self) -> _scalevec.Journal:
        """What was done to the vectors since the file."""
        return _scalevec.Journal(self._map, self.checkpoint)

    @functools.cached_property
    def scales(self) -> Scales:
        """Every scale vector, in forward order: a table. Live: it shows edits."""
        return Scales(self._map)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer; an error names the way out where there is none."""
        if self.container == "gguf":
            return Tokenizer.from_gguf(json.loads(self.checkpoint.tokenizer_json()), source=str(self.path))
        folder = self.path if self.path.is_dir() else self.path.parent
        return Tokenizer.from_folder(folder, allow_links=self._allow_links)

    @functools.cached_property
    def transformer(self) -> _scalevec.Transformer:
        """The running model: reads all weights when first asked for. Shares the scale vectors with `scales`."""
        return _scalevec.Transformer(
            self.checkpoint, scales=self._map, dtype=self.dtype, device=self.device, progress=self._progress
        )

    # Edits

    def edit(self, note: str = "") -> EditBlock:
        """A block of edits that are taken back at its end, bit for bit: see EditBlock."""
        return EditBlock(self, note)

    def apply(self, edit: Edit | EditBlock | Path) -> Model:
        """Applies an edit, or the file of one, for good; returns this model.

        Raises:
            InvalidError: E_BUNDLE, naming the address, if it was made on another base; E_STATE if it is applied.
        """
        made = edit_of(edit)
        with self.edit() as block:
            block.apply(made)
            block.keep()
        return self

    def revert(self, edit: Edit | EditBlock | Path | None = None) -> Model:
        """Takes back an applied edit; without one, puts back every vector of the file. Returns this model."""
        if edit is None:
            self.journal.reset()
            return self
        made = edit_of(edit)
        with self.edit() as block:
            block.undo(made)
            block.keep()
        return self

    @property
    def edited(self) -> bool:
        """Whether any stored bit differs from the file."""
        return self.journal.edited()

    def export(
        self, destination: Path, *, allow_unedited: bool = False, progress: Progress | None = None
    ) -> _scalevec.ExportReport:
        """Writes a copy of the file, or folder, in which only the edited bytes differ.

        Errors as `scalevec.export`; E_NO_EFFECT for a model that nobody edited, unless allowed.
        """
        if not self.edited and not allow_unedited:
            message = "export: nothing is edited now, so the copy would be the file as it is; apply an edit first"
            raise make_error("E_NO_EFFECT", f"{message}, or allow_unedited=True")
        return _scalevec.export_edited(self.checkpoint, self.journal.edit(), os.fspath(destination), progress=progress)

    # Running

    def ids(self, text: str | Any) -> torch.Tensor:
        """(1, tokens), int64: a text by the tokenizer's own rule; ids as they are, of one or of two dimensions."""
        if isinstance(text, str):
            return torch.tensor([self.tokenizer.encode(text)])
        if isinstance(text, torch.Tensor) and text.dtype == torch.int64:
            return text
        nested = text.ndim == 2 if hasattr(text, "ndim") else bool(text) and not isinstance(text[0], (int, np.integer))
        rows = [ids_of(row) for row in text] if nested else [ids_of(text)]
        if any(len(row) != len(rows[0]) for row in rows):
            raise make_error("E_SHAPE", "ids: the rows of a batch have one length; run rows of different lengths alone")
        return torch.tensor(np.array(rows, np.int64))

    def logits(self, text: str | Any, cache: _scalevec.KvCache | None = None) -> torch.Tensor:
        """Logits of a text or of token ids.

        Args:
            text: A string, or ids: (tokens,) or (batch, tokens), int64.
            cache: Positions read before, of one sequence: see KvCache. Gradients are not recorded then.

        Returns:
            (batch, tokens, vocabulary), float32 (float64 when that is the compute dtype). Under grad mode, scale
            vectors that require gradients get them by `backward()`.

        Raises:
            InvalidError: E_VALUE for an id outside the vocabulary, E_SHAPE for ids of a wrong shape.
        """
        return self.transformer.logits(self.ids(text), cache)

    # Functions whose first argument is a model, each kind in a file of its own.
    generate = generating.generate
    generate_both = generating.generate_both
    taps = watching.taps
    reductions = watching.reductions
    override = watching.override
    base = watching.base
    saliency = screening.saliency
    outliers = screening.outliers
    sweep = screening.sweep
    materialise = own_model.materialise
    export_as = own_model.export_as

    def __repr__(self) -> str:
        return (
            f"Model({self.path.name!r}, family={self.family}, {len(self.checkpoint.sites)} scale vectors, "
            f"dtype={self.dtype}, device={self.device})"
        )
