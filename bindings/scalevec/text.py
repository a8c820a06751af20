"""What a model is given to read: text, or token ids in its place."""

from __future__ import annotations

import itertools
import mmap
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalevec.errors import make_error

if TYPE_CHECKING:
    from scalevec.model import Model
    from scalevec.tokenizer import Tokenizer

# A text or the file of one, several (documents), ids of one document (list, array or tensor), or of several (lists, or two dimensions).
Text = (
    str
    | os.PathLike[str]
    | Iterable[str | os.PathLike[str]]
    | Sequence[int]
    | Sequence[Sequence[int]]
    | np.ndarray
    | torch.Tensor
)


# Where the beginning of a text may end: at the end of a line that a few line feeds, not a long run, divide from the next.
_LINE_END = re.compile(r"(?<=\S)\n{1,8}(?=\S)")
# More ids than a cut at a line end can change: it changes those of the line feeds at most, and what ends every text.
_UNSURE = 64
# Characters that are tokenised at a time, and on either side of where two such pieces are joined.
_PIECE, _LEAD = 1 << 20, 1 << 12


def ids_of(values: Any, what: str = "ids", most: int | None = None) -> np.ndarray:
    """The first `most` token ids of one document, int64: a view where they are; no others are read or converted.

    E_DTYPE unless they are integers, E_SHAPE unless there is one dimension.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values[:most] if isinstance(values, Sequence) else values)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise make_error("E_DTYPE", f"{what}: token ids are integers, not {array.dtype}", found=str(array.dtype))
    if array.ndim != 1:
        raise make_error("E_SHAPE", f"{what}: ids of one document have one dimension, not {array.ndim}")
    array = array[:most]
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise make_error("E_VALUE", f"{what}: id {array.max()} does not fit 64 bits")
    return array.astype(np.int64, copy=False)


def read_text(file: str | os.PathLike[str]) -> str:
    """FileError if there is no such file, InvalidError (E_FORMAT) if it is not UTF-8."""
    try:
        return pathlib.Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        message = f"text: {file} is not UTF-8 (byte {error.start}): convert it to UTF-8"
        raise make_error("E_FORMAT", message, file=str(file), offset=error.start) from None
    except OSError as error:
        message = f"text: {file} cannot be read: {error.strerror}"
        raise make_error("E_PATH", message, file=str(file)) from None


def _no_file_name(text: str) -> str:
    """E_VALUE for a name in place of what the file holds."""
    if len(text) < 256 and "\n" not in text and os.path.isfile(text):
        message = f"text: {text!r} is the name of a file; pathlib.Path({text!r}) reads it"
        raise make_error("E_VALUE", message, file=text)
    return text


def _apart(values: np.ndarray) -> np.ndarray:
    """A copy in memory of its own: among a tokenizer's it would keep theirs from being used again."""
    out = np.frombuffer(mmap.mmap(-1, max(1, values.nbytes)), values.dtype, len(values))
    out[:] = values
    return out


def _in_pieces(tokenizer: Tokenizer, text: str) -> Iterator[np.ndarray]:
    """The ids of a text, piece by piece, so that a tokenizer's hundreds of bytes per id are not there for all at once.

    Neighbouring pieces overlap. They are joined where `_UNSURE` tokens on either side are the same in both and stand at
    the same places, by which tokenizers that cut a text into words have met the same words; where they are not, the
    rest is taken of the whole text.
    """
    begin = taken = 0  # of the piece, characters; ids given
    ids, starts = map(_apart, tokenizer.encode_places(text[:_PIECE]))
    while begin + _PIECE < len(text):
        begin += _PIECE - 2 * _LEAD
        more, places = map(_apart, tokenizer.encode_places(text[begin : begin + _PIECE]))
        places += begin
        a, b = np.searchsorted(starts, begin + _LEAD), np.searchsorted(places, begin + _LEAD)
        room = _UNSURE <= a <= len(ids) - _UNSURE and b >= _UNSURE
        here, there = slice(a - _UNSURE, a + _UNSURE), slice(b - _UNSURE, b + _UNSURE)
        if not (room and np.array_equal(ids[here], more[there]) and np.array_equal(starts[here], places[there])):
            yield ids_of(tokenizer.encode(text))[taken:]
            return
        yield ids[:a]
        taken += int(a)
        ids, starts = more[b:], places[b:]
    yield ids


def _text_ids(tokenizer: Tokenizer, text: str, most: int | None) -> np.ndarray:
    """The first `most` ids of a text. Only as much of its beginning is tokenised as leaves them those of the whole."""
    length = 8 * (most or 0) + 4096
    while most is not None and length < _PIECE and (end := _LINE_END.search(text, length)):
        ids = tokenizer.encode(text[: end.end()])
        if len(ids) >= most + _UNSURE:
            return ids_of(ids, most=most)
        length *= 2
    found: list[np.ndarray] = []
    for ids_here in _in_pieces(tokenizer, text):
        found.append(ids_here)
        if most is not None and sum(map(len, found)) >= most:
            break
    return np.concatenate(found)[:most]


def documents_of(model: Model, text: Text, tokens: int | None = None) -> tuple[list[np.ndarray], int | None]:
    """The first `tokens` ids, document by document, and the BOS with which each window begins by the tokenizer's rule.

    Ids are taken as given: no BOS. What lies beyond the limit is neither read nor converted.
    """
    if tokens is not None and tokens < 1:
        raise make_error("E_VALUE", f"tokens: {tokens}; give 1 or more, or None for the whole text", key="tokens")
    if isinstance(text, (Mapping, bytes, bytearray)) or not isinstance(text, (Iterable, os.PathLike)):
        what = "a mapping" if isinstance(text, Mapping) else f"a value of type {type(text).__name__}"
        raise make_error("E_SCHEMA", f"text: {what} is no text; give a string, a pathlib.Path, several, or token ids")
    alone = isinstance(text, (str, os.PathLike)) or (isinstance(text, (np.ndarray, torch.Tensor)) and text.ndim != 2)
    many: Any = [text] if alone else text
    items: Iterator[Any] = iter(many)
    first = next(items, None)
    if first is None:
        return [], None
    items = itertools.chain([first], items)
    if isinstance(first, (int, np.integer)):
        items = iter([list(itertools.islice(items, tokens))])
    tokenizer = model.tokenizer if isinstance(first, (str, os.PathLike)) else None
    documents: list[np.ndarray] = []
    left = tokens
    for item in items:
        if isinstance(item, (str, os.PathLike)) != (tokenizer is not None):
            raise make_error("E_SCHEMA", "text: strings and token ids are mixed; give one or the other")
        if tokenizer:
            item = read_text(item) if isinstance(item, os.PathLike) else _no_file_name(item)
        documents.append(_text_ids(tokenizer, item, left) if tokenizer else ids_of(item, most=left))
        if left is not None:
            left -= len(documents[-1])
            if left == 0:  # before the next is asked for: it may be a file
                break
    return documents, tokenizer.bos_id if tokenizer and tokenizer.adds_bos else None
