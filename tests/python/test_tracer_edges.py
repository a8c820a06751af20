"""What the trace says where gradients, descriptions or numbers are out of order, and of vectors that are given."""

from __future__ import annotations

import itertools
import math
import pathlib

import numpy as np
import pytest
import scalevec
import torch
from scalevec import _scalevec as core
from tiny_training import (
    final_norm_tracer,
    tiny_llama,
)


@pytest.mark.parametrize("mistake", ["none", "a reader is missed", "a + 1 too many"])
def test_the_gauge_names_a_wrong_description_of_a_vector(tmp_path: pathlib.Path, mistake: str) -> None:
    model = tiny_llama()
    norm, attn = model.model.layers[0].input_layernorm, model.model.layers[0].self_attn
    readers = {"q": attn.q_proj.weight, "k": attn.k_proj.weight, "v": attn.v_proj.weight}
    if mistake == "a reader is missed":
        del readers["v"]
    vector = core.TracedVector(
        address="layers.0.attn.input_norm", native="w", role="input", offset=float(mistake == "a + 1 too many"), eps=1e-6,
        stored=norm.weight, consumers=[*readers.items()],
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with scalevec.trace(model, optimizer, tmp_path / "run.h5", every=1, vectors=[vector]) as tracer:
        ids = torch.arange(64).reshape(4, 16) % 41
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        tracer.step()
        named = [(address, step, column) for address, step, _, _, column in tracer.gauge_faults]
    assert named == ([] if mistake == "none" else [("layers.0.attn.input_norm", 1, "gauge_residual")])
    residual = scalevec.open_trace(tmp_path / "run.h5")["gauge_residual"]
    assert np.median(residual) < 1e-6 if mistake == "none" else np.median(residual) > 1e-2


def test_maps_that_move_by_different_rules_have_no_rate_in_common(tmp_path: pathlib.Path) -> None:
    w, v, g = (torch.rand(3, 5) + 0.5, torch.rand(4, 5) + 0.5, torch.rand(5) + 0.5)
    columns = {"elr", "wd_balance", "rotation_ratio"}
    for other, known in (
        ({}, columns), ({"rate": 0.2}, {"wd_balance"}), ({"weight_decay": 0.3}, {"elr"}), ({"rule": "muon"}, {"wd_balance"}),
        ({"momentum": 0.5}, {"wd_balance", "rotation_ratio"}),
    ):  # fmt: skip
        path = tmp_path / f"{'-'.join(other)}.h5"
        vector = core.TracedVector(
            address="layers.0.mlp.input_norm", native="w", role="input", offset=0.0, eps=1e-6, stored=g,
            consumers=[("gate", w), ("up", v)],
        )  # fmt: skip
        tracer = core.Tracer(
            path, [vector], command="t", every=1, gauge_tolerance=0.0, inputs=False, curvature=False, after=None
        )

        def view(tensor: torch.Tensor, other: dict = other) -> dict:
            facts = {
                "rule": "sgd",
                "rate": 0.1,
                "weight_decay": 0.2,
                "momentum": 0.0,
                "gradient": torch.ones_like(tensor),
            }
            return facts | (other if tensor.shape == v.shape else {})

        tracer.before(1, view)
        with torch.no_grad():
            for tensor in (w, v, g):
                tensor.mul_(0.98)
        tracer.after(1, view)
        assert tracer.close() == ""
        trace = scalevec.open_trace(path)
        assert {column for column in columns if np.isfinite(trace[column]).all()} == known, other


def test_what_is_not_finite_is_counted_with_site_channel_and_step(tmp_path: pathlib.Path, record_property) -> None:
    """1,000 steps with NaN and infinities in vectors, their gradients, maps and theirs; the training goes on."""
    random = np.random.default_rng(3)
    tensors = {name: torch.ones(shape) for name, shape in {"g": 12, "w": (5, 12), "dg": 12, "dw": (5, 12)}.items()}
    tracer = final_norm_tracer(tmp_path / "run.h5", tensors["g"], tensors["w"])

    def view(tensor: torch.Tensor) -> dict:
        facts = {"rule": "sgd", "rate": 0.1, "gradient": tensors["dg" if tensor.dim() == 1 else "dw"]}
        return {**facts, "momentum": 0.9, "weight_decay": 0.0}

    expected = []
    for step in range(1, 1001):
        for t in tensors.values():
            t.copy_(torch.from_numpy(random.uniform(0.5, 1.5, t.shape)))
        channels = set(random.choice(12, random.integers(0, 4), replace=False).tolist())
        where = {}
        for channel in channels:
            where[channel] = random.choice(list(tensors))
            tensors[where[channel]][..., channel] = random.choice([np.nan, np.inf, -np.inf])
        first = min(channels, default=math.nan)
        tensor = 1 + ["g", "dg", "w", "dw"].index(where[first]) if channels else math.nan
        expected.append((len(channels), first, tensor))
        tracer.before(step, view)
        tracer.after(step, view)
    assert tracer.close() == ""
    record_property("steps", len(expected))
    trace = scalevec.open_trace(tmp_path / "run.h5")
    found = np.stack([trace[name, "final_norm"] for name in ("nonfinite", "nonfinite_channel", "nonfinite_tensor")], 1)
    np.testing.assert_array_equal(found, np.array(expected))
    whole = found[:, 0] == 0
    assert 100 < whole.sum() < 900
    assert np.isfinite(trace["gini", "final_norm"][whole]).all()


@pytest.mark.parametrize("rule", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(("tensor", "number"), [("vector", 2), ("map", 4)])
def test_a_gradient_that_is_lost_is_told_from_what_the_step_makes_of_it(
    tmp_path: pathlib.Path, rule, tensor: str, number: int
) -> None:
    model = tiny_llama()
    layer = model.model.layers[0]
    optimizer = rule(model.parameters(), lr=0.01)
    with scalevec.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        ids = torch.arange(64).reshape(4, 16) % 41
        model(input_ids=ids, labels=ids).loss.backward()
        if tensor == "vector":
            layer.post_attention_layernorm.weight.grad[3] = math.inf
        else:
            layer.mlp.gate_proj.weight.grad[1, 3] = math.nan
        optimizer.step()
        tracer.step()
    trace = scalevec.open_trace(tmp_path / "run.h5")
    for site in trace.sites:
        told = [float(trace[name, site.address][0]) for name in ("nonfinite", "nonfinite_channel", "nonfinite_tensor")]
        here = site.address == "layers.0.mlp.input_norm"
        np.testing.assert_array_equal(told, [1, 3, number] if here else [0, np.nan, np.nan])


def test_a_zero_has_no_direction_and_counts_in_sums(tmp_path: pathlib.Path) -> None:
    """A channel that is 0, one that stays: no cosine of what does not move, and shares of all that does."""
    random = np.random.default_rng(4)
    g, w, dg, dw = (torch.from_numpy(random.normal(size=shape)) for shape in (6, (5, 6), 6, (5, 6)))
    g[2] = 0.0
    tracer = final_norm_tracer(tmp_path / "run.h5", g, w)
    tracer.before(1, lambda t: {"rule": "sgd", "rate": 0.1, "gradient": dg if t.dim() == 1 else dw, "momentum": 0.0})
    moved = 0.1 * dg
    moved[4] = 0.0
    dot = (-0.1 * dw * w).sum(0) * (g * -moved)
    expected = (dot / ((0.1 * dw).norm(dim=0) * w.norm(dim=0) * (g * moved).abs())).numpy()
    g -= moved
    w -= 0.1 * dw
    tracer.after(1, lambda t: {"rule": "sgd", "rate": 0.1, "gradient": dg if t.dim() == 1 else dw, "momentum": 0.0})
    assert tracer.close() == ""
    trace = scalevec.open_trace(tmp_path / "run.h5")
    cosine = trace["channel_cosine", "final_norm"][0]
    assert np.isnan(cosine).tolist() == [False, False, True, False, True, False]
    np.testing.assert_allclose(cosine, expected, rtol=1e-6)
    squares = (dw.square().sum().item(), dg.square().sum().item())
    assert trace["vector_share", "final_norm"][0] == pytest.approx(squares[1] / sum(squares), rel=1e-12)


def test_changes_of_sign_and_the_rows_of_the_largest_maps(tmp_path: pathlib.Path) -> None:
    """Of a vector and two maps that are given at every step."""
    random = np.random.default_rng(5)
    address, g, maps = "layers.0.mlp.input_norm", torch.ones(12), {"gate": torch.ones(3, 12), "up": torch.ones(3, 12)}
    vector = core.TracedVector(
        address=address, native="norm.weight", role="input", offset=0.0, eps=1e-6, stored=g, consumers=[*maps.items()]
    )
    tracer = core.Tracer(
        tmp_path / "run.h5", [vector], command="t", every=1, gauge_tolerance=0.0, inputs=False, curvature=False, after=None
    )  # fmt: skip
    changed, signs, sizes = [], [[False] * 12], [[1.0, 1.0]]
    for step in range(1, 41):
        tracer.before(step, lambda _: {"rule": "other"})
        g.copy_(torch.from_numpy(random.choice([-1.0, 1.0], 12, p=[0.2, 0.8]) * random.uniform(0.5, 1.5, 12)))
        sizes.append(random.uniform(0.3, 1.0 + step / 50, 2).tolist())
        for w, size in zip(maps.values(), sizes[-1], strict=True):
            w.fill_(size)
        tracer.after(step, lambda _: {"rule": "other"})
        signs.append([bool(v < 0) for v in g.tolist()])
        changed.append([sum(a[j] != b[j] for a, b in itertools.pairwise(signs)) for j in range(12)])
    assert tracer.close() == ""
    trace = scalevec.open_trace(tmp_path / "run.h5")
    np.testing.assert_array_equal(trace["channel_flips", address], changed)
    np.testing.assert_array_equal(trace["sign_flips", address], np.sum(changed, 1))
    assert sum(changed[1]) > 0 and len(set(changed[-1])) > 3
    gate, up = np.array(sizes).T
    peaks = {}
    for name, size in {"weight_peak": np.hypot(gate, up), "weight_peak_gate": gate, "weight_peak_up": up}.items():
        peaks[name] = [int(np.argmax(size[: row + 2])) for row in range(40)]
        np.testing.assert_array_equal(trace[name, address], peaks[name], err_msg=name)
        assert len(set(peaks[name])) > 3
    assert len({tuple(rows) for rows in peaks.values()}) == 3
