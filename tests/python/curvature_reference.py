"""What traced curvature is compared with: whole Hessians."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scalevec import _scalevec as core


def dense(matrix: torch.Tensor, **options: int) -> core.Spectrum:
    return core.spectrum(lambda v: matrix @ v, len(matrix), **options)


def compare(
    trace, address: str, row: int, blocks: dict[str, torch.Tensor], g: np.ndarray, dg: np.ndarray, digits: float
):
    """Traced figures against those of the whole Hessian, from the same probes."""
    for block, hessian in blocks.items():
        expected = dense(hessian)
        scale = float(hessian.norm())
        assert scale > 0
        for name in ("sharpness", "trace", "trace_error", "frobenius"):
            value = getattr(expected, {"sharpness": "largest"}.get(name, name))
            bound = digits * scale * math.sqrt(len(hessian))
            assert trace[f"{block}_{name}", address][row] == pytest.approx(value, abs=bound), (block, name)
        true = torch.linalg.eigvalsh(hessian)
        off = float((true - trace[f"{block}_sharpness", address][row]).abs().min())
        assert off <= trace[f"{block}_sharpness_bound", address][row] + digits * scale
    vector = dense(blocks["vector"])
    h = g**2 * np.array(vector.diagonal) + g * dg
    bound = digits * np.abs(g).max() ** 2 * float(blocks["vector"].norm()) * len(g) + 1e-6 * np.abs(h).max()
    np.testing.assert_allclose(trace["log_curvature", address][row], h, rtol=0, atol=bound)
    np.testing.assert_allclose(
        trace["log_curvature_error", address][row], g**2 * np.array(vector.diagonal_error), rtol=0, atol=2 * bound
    )


def hessians(loss: Callable[..., torch.Tensor], g: torch.Tensor, maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """By autograd, of everything at once: (n, n) for each block."""
    parts = torch.autograd.functional.hessian(loss, (g, *maps), vectorize=True)
    sizes = [t.numel() for t in (g, *maps)]
    whole = torch.cat([
        torch.cat([part.reshape(a, b) for part, b in zip(row, sizes, strict=True)], 1)
        for row, a in zip(parts, sizes, strict=True)
    ]).double()  # fmt: skip
    whole = (whole + whole.T) / 2
    d = g.numel()
    return {"vector": whole[:d, :d], "maps": whole[d:, d:], "joint": whole}
