"""What a few products tell of a symmetric matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curvature_reference import dense
from scalevec import _scalevec as core


def symmetric(eigenvalues: np.ndarray, random: np.random.Generator) -> torch.Tensor:
    q = np.linalg.qr(random.standard_normal((len(eigenvalues), len(eigenvalues))))[0]
    m = (q * eigenvalues) @ q.T
    return torch.from_numpy((m + m.T) / 2)


def test_an_eigenvalue_is_within_the_bound() -> None:
    """Of 1,000 random spectra and of such as Lanczos finds hard; none is overestimated."""
    random = np.random.default_rng(0)
    spectra = [random.standard_normal(n) * 10.0 ** random.uniform(-8, 8) for n in random.integers(1, 60, 1000)]
    n = 48
    spectra += [
        np.zeros(n), np.ones(n), -np.ones(n), np.eye(n)[0], -np.eye(n)[0], np.repeat([1.0, 2.0], n // 2),
        np.linspace(0, 1, n), np.linspace(-1, 0, n), np.geomspace(1e-12, 1, n), -np.geomspace(1e-12, 1, n),
        1 - np.geomspace(1e-12, 1, n), np.r_[np.ones(n - 1), 1 + 1e-9], np.r_[np.zeros(n - 1), 1e-300],
        np.r_[np.full(n - 1, -1e6), 1e-6], np.r_[-1e12, np.linspace(0, 1, n - 1)], np.cos(np.pi * np.arange(n) / n),
        np.r_[np.ones(n // 2), -np.ones(n // 2)], np.r_[1e8, np.linspace(0, 1, n - 1)],
        np.r_[np.full(3, 5.0), np.linspace(0, 4.999, n - 3)], np.geomspace(1e-300, 1e-280, n),
    ]  # fmt: skip
    close = 0
    for eigenvalues in spectra:
        matrix = symmetric(eigenvalues, random)
        true = np.linalg.eigvalsh(matrix.numpy())
        rounding = 1e-13 * np.abs(true).max()
        found = dense(matrix)
        assert np.abs(true - found.largest).min() <= found.bound + rounding
        assert found.largest <= true[-1] + rounding
        if len(eigenvalues) <= 12:
            assert found.largest == pytest.approx(true[-1], abs=1e3 * rounding)
        # Twelve steps need not reach the end of a spectrum without gaps; of most they come near.
        close += true[-1] - found.largest <= 0.05 * (true[-1] - true[0]) + rounding
    assert close >= 0.95 * len(spectra)


def test_estimates_and_their_errors() -> None:
    random = np.random.default_rng(1)
    matrix = symmetric(random.standard_normal(80), random)
    off = []
    for seed in range(200):
        s = dense(matrix, seed=seed, probes=16)
        off.append([(s.trace - float(matrix.trace())) / s.trace_error, *(
            (np.array(s.diagonal) - matrix.diagonal().numpy()) / s.diagonal_error)])  # fmt: skip
        # |Hz|^2 of one probe varies by some sqrt(2 / 80) of itself, and of heavy rows by more.
        assert s.frobenius == pytest.approx(float(matrix.norm()), rel=0.35)
    # Student's t of 15 degrees of freedom: variance 15 / 13.
    spread = np.std(np.array(off), 0)
    assert 0.9 < spread[0] < 1.3 and np.all((spread[1:] > 0.85) & (spread[1:] < 1.35)), (spread.min(), spread.max())
    assert abs(np.mean(off)) < 0.05
    exact = dense(torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64)))
    assert exact.diagonal == pytest.approx([1, 2, 3, 4, 5]) and exact.trace == pytest.approx(15)
    assert math.isnan(dense(matrix, probes=1).trace_error)
    lost = core.spectrum(lambda v: v * math.nan, 4)
    assert math.isnan(lost.largest) and math.isnan(lost.bound) and math.isnan(lost.trace)
