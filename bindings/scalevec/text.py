"""What a model is given to read: text, or token ids in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalevec.errors import make_error

if TYPE_CHECKING:
    from scalevec.model import Model

# A text, several (documents), ids of one document (list, array or tensor), or of several (lists, or two dimensions).
Text = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | np.ndarray | torch.Tensor


def ids_of(values: Any, what: str = "ids") -> list[int]:
    """Token ids of one document as a list; E_DTYPE unless they are integers, E_SHAPE unless there is one dimension."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.size == 0:
        return []
    if array.dtype.kind not in "iu":
        raise make_error("E_DTYPE", f"{what}: token ids are integers, not {array.dtype}", found=str(array.dtype))
    if array.ndim != 1:
        raise make_error("E_SHAPE", f"{what}: ids of one document have one dimension, not {array.ndim}")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise make_error("E_VALUE", f"{what}: id {array.max()} does not fit 64 bits")
    return array.astype(np.int64).tolist()


def id_limit(tokens: int | None) -> int:
    """How many ids of a text to read, 0 for all, as the core wants it."""
    if tokens is not None and tokens < 1:
        raise make_error("E_VALUE", f"tokens: {tokens}; give 1 or more, or None for the whole text", key="tokens")
    return tokens or 0


def documents_of(model: Model, text: Text) -> tuple[list[list[int]], int | None]:
    """Ids document by document, and the BOS with which each window begins where the tokenizer's own rule adds one.

    Ids are taken as given: no BOS.
    """
    if isinstance(text, Mapping):
        raise make_error("E_SCHEMA", "text: a mapping is no text; give a string, several, or token ids")
    if isinstance(text, str):
        text = [text]
    if isinstance(text, (np.ndarray, torch.Tensor)):
        rows = list(text) if text.ndim == 2 else [text]
        return [ids_of(row) for row in rows], None
    items = list(text)
    if items and all(isinstance(item, str) for item in items):
        tokenizer = model.tokenizer
        return [tokenizer.encode(str(item)) for item in items], tokenizer.bos_id if tokenizer.adds_bos else None
    if any(isinstance(item, str) for item in items):
        raise make_error("E_SCHEMA", "text: strings and token ids are mixed; give one or the other")
    if items and all(isinstance(item, (int, np.integer)) for item in items):
        return [ids_of(items)], None
    return [ids_of(item) for item in items], None
