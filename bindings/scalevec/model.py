"""A model from a file: its scale vectors, edits, and everything that runs it."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from scalevec import _scalevec, screening
from scalevec.editing import Edit, EditBlock, Path, edit_of
from scalevec.errors import make_error
from scalevec.scales import Scale, Scales, selector_of
from scalevec.text import Text, documents_of, ids_of
from scalevec.tokenizer import Message, Tokenizer

Progress = Callable[[str, int, int], None]

TAPS = ("input", "rms", "normalized", "scaled", "vector", "input_gradient", "vector_gradient")
FORWARD_TAPS = TAPS[:5]


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


def inspect(path: Path) -> Scales:
    """The scale vectors of a model, from headers and vectors alone: `load(path).scales`."""
    return load(path).scales


class Continuation(str):
    """A text that a model wrote: a string with the ids behind it.

    Attributes:
        ids: Token ids, without the prompt.
        finish: "stop" (an end token), "length" (max_tokens) or "context" (the model's context is full).
    """

    ids: list[int]
    finish: str

    @classmethod
    def _of(cls, text: str, made: _scalevec.Generated) -> Continuation:
        self = cls(text)
        self.ids, self.finish = made.ids, made.finish
        return self


class Model:
    """A model: see `load`. Not for several threads at once."""

    def __init__(
        self, path: Path, *, dtype: str = "float32", device: str = "cpu", threads: int | None = None,
        allow_links: bool = False, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        _scalevec.check_options(dtype=dtype, device=device)
        if threads is not None:
            if threads < 1:
                raise make_error("E_VALUE", f"load: {threads} threads; give 1 or more", key="threads")
            torch.set_num_threads(threads)
        self.checkpoint = _scalevec.Checkpoint(os.fspath(path), allow_links=allow_links)
        self.dtype = dtype
        self.device = device
        self._progress = progress

    @property
    def path(self) -> pathlib.Path:
        return pathlib.Path(self.checkpoint.path)

    @property
    def family(self) -> str:
        """ "llama", "qwen3", "gemma3", ..."""
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
        return Tokenizer.from_folder(self.path if self.path.is_dir() else self.path.parent)

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

    def export(self, destination: Path, *, progress: Progress | None = None) -> _scalevec.ExportReport:
        """Writes a copy of the file, or folder, in which only the edited bytes differ. Errors as `scalevec.export`."""
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
        return torch.tensor(rows, dtype=torch.int64)

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

    def _prompt(self, prompt: Any, chat: bool) -> list[int]:
        if chat or (isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping)):
            return self.tokenizer.encode_chat(prompt)
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else ids_of(prompt, "prompt")

    def _generate_options(self, given: dict[str, Any]) -> dict[str, Any]:
        stop = given.pop("stop")
        if stop is None:
            try:
                stop = sorted(self.tokenizer.stop_ids)
            except Exception:  # a model without a tokenizer runs on ids
                stop = []
        on_text, on_token = given.pop("on_text"), None
        if on_text is not None:
            ids: list[int] = []
            shown = ""

            def on_token(index: int) -> None:
                nonlocal shown
                ids.append(index)
                text = self.tokenizer.decode(ids)
                if not text.endswith("\ufffd"):  # in the middle of a character
                    on_text(text[len(shown) :])
                    shown = text

        return {**given, "stop": list(stop), "on_token": on_token}

    def _text(self, made: _scalevec.Generated) -> Continuation:
        try:
            text = self.tokenizer.decode(made.ids)
        except Exception:  # a model without a tokenizer
            text = " ".join(map(str, made.ids))
        return Continuation._of(text, made)

    def generate(
        self,
        prompt: str | Sequence[Message] | Any,
        max_tokens: int = 80,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        chat: bool = False,
        *,
        top_k: int = 0,
        stop: Sequence[int] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Continuation:
        """Continues a prompt with the model as it stands.

        Args:
            prompt: Text, token ids, or the messages of a chat (mappings with role and content).
            temperature: 0 takes the most probable token each time.
            top_p: Of the most probable tokens, the fewest of this total.
            seed: The same seed gives the same text.
            chat: Put the prompt into the model's chat template, as what a user says.
            stop: Ids that end the text; by default those that the model's tokenizer names.
            on_text: Called with each piece of text as it comes.

        Returns:
            The text, a str with `.ids` and `.finish`.
        """
        options = self._generate_options(
            {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed,
             "stop": stop, "on_text": on_text}
        )  # fmt: skip
        return self._text(_scalevec.generate(self.transformer, self._prompt(prompt, chat), **options))

    def generate_both(
        self, prompt: str | Sequence[Message] | Any, max_tokens: int = 80, temperature: float = 0.0,
        top_p: float = 1.0, seed: int = 0, chat: bool = False, *, top_k: int = 0, stop: Sequence[int] | None = None,
    ) -> tuple[Continuation, Continuation]:  # fmt: skip
        """(before, after): the same prompt and seed with the file's vectors, and with the model as it stands."""
        options = self._generate_options(
            {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed,
             "stop": stop, "on_text": None}
        )  # fmt: skip
        before, after = _scalevec.generate_both(self.transformer, self._prompt(prompt, chat), **options)
        return self._text(before), self._text(after)

    # Watching

    @contextmanager
    def taps(self, target: str | Scale | Scales = "**", *parts: str) -> Iterator[_scalevec.Capture]:
        """Keeps what norm sites do in every forward of the block.

        ::

            with model.taps("layers.3.*.input_norm", "input", "rms") as seen:
                model.logits("Hello")
            seen["layers.3.mlp.input_norm"].rms[0]     # of the first forward

        Args:
            target: A selector, a vector or a table of them. Sites without a vector can be watched too.
            parts: Of input, rms, normalized, scaled, vector, input_gradient, vector_gradient; the first five by
                default. Gradients arrive with a backward pass, also after the block.

        Raises:
            AddressError: Nothing is selected. InvalidError: E_VALUE for an unknown part.
        """
        capture = _scalevec.Capture(self.transformer, selector_of(target), list(parts or FORWARD_TAPS))
        try:
            yield capture
        finally:
            capture.stop()

    @contextmanager
    def reductions(
        self, target: str | Scale | Scales = "**", *parts: str, products: bool = False
    ) -> Iterator[_scalevec.Reductions]:
        """As `taps`, but keeps running figures per channel and no activations: `.at(address, part).mean_square`."""
        reductions = _scalevec.Reductions(
            self.transformer, selector_of(target), list(parts or ("scaled",)), products=products
        )
        try:
            yield reductions
        finally:
            reductions.stop()

    @contextmanager
    def override(
        self, target: str | Scale | Mapping[str, Any], vector: Any = None, *, allow_non_finite: bool = False
    ) -> Iterator[_scalevec.Override]:
        """Runs the block with other effective vectors; the stored ones are untouched.

        Args:
            target: An address with `vector`, or a mapping of addresses to vectors.
            vector: (width,), floating; a tensor that requires gradients gets them.

        Raises:
            AddressError, InvalidError: E_ADDR, E_SHAPE, E_DTYPE, E_VALUE (not finite, unless allowed).
        """
        vectors = target if isinstance(target, Mapping) else {selector_of(target): vector}
        tensors = {
            selector_of(name): value if isinstance(value, torch.Tensor) else torch.as_tensor(value, dtype=torch.float64)
            for name, value in vectors.items()
        }
        override = _scalevec.Override(self.transformer, tensors, allow_non_finite=allow_non_finite)
        try:
            yield override
        finally:
            override.stop()

    # Screening

    def saliency(
        self, text: Text, *, context: int = 512, tokens: int | None = None, progress: Progress | None = None
    ) -> screening.Saliency:
        """First-order view of every entry: one forward and backward in which only scale vectors require gradients.

        It finds candidates; of large changes it says neither size nor sign. See `sweep` for exact figures.
        """
        documents, bos = documents_of(self, text)
        made = _scalevec.saliency(
            self.transformer, documents, context=context, bos=bos, tokens=tokens or 0, progress=progress
        )
        return screening.Saliency(self.scales, made)

    def outliers(self) -> dict[str, np.ndarray]:
        """By address: how many of its vector's standard deviations each entry lies from the mean. (width,), float64."""
        scores = _scalevec.outlier_scores(self._map)
        return {scale.address: score.numpy() for scale, score in zip(self.scales, scores, strict=True)}

    def sweep(
        self,
        text: Text,
        trials: Sequence[screening.Trial],
        *,
        context: int = 512,
        tokens: int | None = None,
        seed: int = 0,
        resamples: int = 2000,
        batch: int = 32,
        progress: Progress | None = None,
    ) -> list[_scalevec.Change]:
        """Exact effects of many single-entry edits of the file's vectors, each alone: loss change, KL, flips.

        Args:
            trials: (address, channel, effective value). The model is never changed.

        Returns:
            One Change for each, in order; intervals from 20 chunks of 64 predictions on.
        """
        documents, bos = documents_of(self, text)
        return _scalevec.sweep(
            self.transformer, documents, screening.trials_of(self._map, trials), context=context, bos=bos,
            tokens=tokens or 0, seed=seed, resamples=resamples, batch=batch, progress=progress,
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"Model({self.path.name!r}, family={self.family}, {len(self.checkpoint.sites)} scale vectors, "
            f"dtype={self.dtype}, device={self.device})"
        )
