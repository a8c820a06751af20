"""What a model is given to read: text, or token ids in its place."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalevec.errors import make_error

if TYPE_CHECKING:
    from scalevec.model import Model
    from scalevec.tokenizer import Tokenizer

# A text, several (documents), ids of one document (list, array or tensor), or of several (lists, or two dimensions).
Text = str | Iterable[str] | Sequence[int] | Sequence[Sequence[int]] | np.ndarray | torch.Tensor


# Where the beginning of a text may end: at the end of a line that a few line feeds, not a long run, divide from the next.
_LINE_END = re.compile(r"(?<=\S)\n{1,8}(?=\S)")
# More ids than a cut at a line end can change: it changes those of the line feeds at most, and what ends every text.
_UNSURE = 64


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


def _text_ids(tokenizer: Tokenizer, text: str, most: int | None) -> np.ndarray:
    """The first `most` ids of a text. Only as much of its beginning is tokenised as leaves them those of the whole."""
    length = 8 * (most or 0) + 4096
    while most is not None and (end := _LINE_END.search(text, length)):
        ids = tokenizer.encode(text[: end.end()])
        if len(ids) >= most + _UNSURE:
            return ids_of(ids, most=most)
        length *= 2
    return ids_of(tokenizer.encode(text), most=most)


def documents_of(model: Model, text: Text, tokens: int | None = None) -> tuple[list[np.ndarray], int | None]:
    """The first `tokens` ids, document by document, and the BOS with which each window begins by the tokenizer's rule.

    Ids are taken as given: no BOS. What lies beyond the limit is neither read nor converted.
    """
    if tokens is not None and tokens < 1:
        raise make_error("E_VALUE", f"tokens: {tokens}; give 1 or more, or None for the whole text", key="tokens")
    if isinstance(text, Mapping):
        raise make_error("E_SCHEMA", "text: a mapping is no text; give a string, several, or token ids")
    alone = isinstance(text, str) or (isinstance(text, (np.ndarray, torch.Tensor)) and text.ndim != 2)
    items: Iterator[Any] = iter([text] if alone else text)
    first = next(items, None)
    if first is None:
        return [], None
    items = itertools.chain([first], items)
    if isinstance(first, (int, np.integer)):
        items = iter([list(itertools.islice(items, tokens))])
    tokenizer = model.tokenizer if isinstance(first, str) else None
    documents: list[np.ndarray] = []
    left = tokens
    for item in items:
        if isinstance(item, str) != (tokenizer is not None):
            raise make_error("E_SCHEMA", "text: strings and token ids are mixed; give one or the other")
        documents.append(_text_ids(tokenizer, item, left) if tokenizer else ids_of(item, most=left))
        if left is not None:
            left -= len(documents[-1])
            if left == 0:  # before the next is asked for: it may be a file
                break
    return documents, tokenizer.bos_id if tokenizer and tokenizer.adds_bos else None
