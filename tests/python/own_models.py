"""Models of ours to test with, and the command line in this process."""

import contextlib
import io
import types

import numpy as np
import pytest
import torch
from scalevec import _scalevec, cli

# Embedding and head are read and written in more than one piece.
SIZES = {"vocabulary": 6000, "width": 48, "layers": 3, "head_dim": 12, "kv_heads": 2, "inner": 80, "context": 128}
MIXTURE = {"experts": 4, "active": 2, "expert_inner": 20}


def drawn(config, seed=0):
    """Tensors of a model; vectors and coefficients off their start, so that nothing is 1 or 0 by chance."""
    random = torch.Generator().manual_seed(seed)
    slots = {}
    for slot, shape in _scalevec.tensor_slots(config).items():
        values = torch.randn(shape, generator=random)
        if slot.endswith(".beta"):
            slots[slot] = (0.1 if "exponential" in config else 0.9) + 0.1 * values
        elif len(shape) == 1:
            slots[slot] = 1.1 + 0.3 * values
        else:
            slots[slot] = values * (0.3 if slot == "embed.weight" else 1.2 / shape[-1] ** 0.5)
    return slots


def save(folder, strategy, weights, sizes, files):
    config = _scalevec.make_config(strategy, "nano", {**SIZES, **sizes})
    _scalevec.save_model(config, drawn(config), folder, weights=weights, files=files, metadata={"note": "kept"})


def effective(tensors, address, form="or"):
    """A vector by the paper's formulas, in float64."""
    if f"{address}.weight" in tensors:
        return tensors[f"{address}.weight"].double().numpy()
    alpha, beta = tensors[f"{address}.alpha"].double().numpy(), float(tensors[f"{address}.beta"])
    if form == "er":
        return np.exp(beta) * np.exp(alpha - alpha.mean())
    return beta * np.sqrt(len(alpha)) * alpha / np.linalg.norm(alpha)


def command(*words):
    """The command line, in this process: exit status, and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(word) for word in words])
    return types.SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def refused(call, code, *words, kind=ValueError):
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return caught.value


IDS = torch.randint(0, SIZES["vocabulary"], (2, 40), generator=torch.Generator().manual_seed(1))
