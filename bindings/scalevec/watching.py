"""What norm sites do in the forwards of a block, and with which vectors: methods of Model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalevec import _scalevec
from scalevec.scales import Scale, Target, selector_of

if TYPE_CHECKING:
    from scalevec.model import Model

FORWARD_TAPS = ("input", "rms", "normalized", "scaled", "vector")


@contextmanager
def taps(model: Model, target: Target = "**", *parts: str) -> Iterator[_scalevec.Capture]:
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
    capture = _scalevec.Capture(model.transformer, selector_of(target), list(parts or FORWARD_TAPS))
    try:
        yield capture
    finally:
        capture.stop()


@contextmanager
def reductions(
    model: Model, target: Target = "**", *parts: str, products: bool = False
) -> Iterator[_scalevec.Reductions]:
    """As `taps`, but keeps running figures per channel and no activations: `.at(address, part).mean_square`.

    `.merge(other)` adds what other reductions of the same sites and parts saw.
    """
    figures = _scalevec.Reductions(
        model.transformer, selector_of(target), list(parts or ("scaled",)), products=products
    )
    try:
        yield figures
    finally:
        figures.stop()


@contextmanager
def override(
    model: Model, target: str | Scale | Mapping[str, Any], vector: Any = None, *, allow_non_finite: bool = False
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
        selector_of(name): value if isinstance(value, torch.Tensor) else torch.tensor(np.array(value, np.float64))
        for name, value in vectors.items()
    }
    lent = _scalevec.Override(model.transformer, tensors, allow_non_finite=allow_non_finite)
    try:
        yield lent
    finally:
        lent.stop()


@contextmanager
def base(model: Model) -> Iterator[_scalevec.Override]:
    """Runs the block with the vectors of the file, whatever was edited or lent before it."""
    lent = _scalevec.Override.base(model.transformer)
    try:
        yield lent
    finally:
        lent.stop()
