"""Curvature of the loss in effective vectors and maps of a Module, and of vectors that one gives oneself."""

from __future__ import annotations

import copy
import pathlib

import numpy as np
import pytest
import scalevec as sv
import torch
from curvature_reference import compare
from scalevec import _scalevec as core
from tiny_training import loss_of, tiny_module


@pytest.mark.parametrize(
    ("strategy", "experts", "sites"),
    [("hg+dnp+or", 0, slice(None, None, 3)), ("gemma", 0, slice(None, None, 2)), ("ap+er", 0, slice(None, None, 3)),
     ("standard", 3, slice(1, 2))],  # the vector of a router and all experts
)  # fmt: skip
def test_curvature_of_a_module(tmp_path: pathlib.Path, strategy: str, experts: int, sites: slice) -> None:
    """Of effective vectors and maps, against differences of gradients of the same model in float64; nothing is moved by it."""
    mixture = {"experts": experts, "active": 2, "expert_inner": 1, "inner": 2, "layers": 1}
    model = tiny_module(strategy, **(mixture if experts else {}))
    ids = torch.randint(0, 41, (2, 9), generator=torch.Generator().manual_seed(5))
    wide = copy.deepcopy(model).double()
    alone = copy.deepcopy(model)
    optimizer, other = (torch.optim.AdamW(m.parameters(), lr=0.01) for m in (model, alone))
    with sv.trace(
        model,
        optimizer,
        tmp_path / "run.h5",
        every=1,
        inputs=True,
        curvature=lambda: loss_of(model, ids),
        curvature_every=2,
    ) as tracer:
        for _ in range(2):
            loss_of(model, ids).backward()
            optimizer.step()
            tracer.step()
            optimizer.zero_grad()
    for _ in range(2):
        loss_of(alone, ids).backward()
        other.step()
        other.zero_grad()
    for (name, a), b in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b), name
    trace = sv.open_trace(tmp_path / "run.h5")
    vectors = {v.address: v for v in wide.spec.traced_vectors({n: p.detach() for n, p in wide.named_parameters()})}
    names = {p.data_ptr(): name for name, p in wide.named_parameters()}
    transformer = wide.transformer()
    seen = 0
    for address in [site.address for site in trace.sites][sites]:
        maps = [wide.get_parameter(names[w.data_ptr()]) for _, w in vectors[address].maps]
        g = transformer.scales[transformer.scales.index_of(address)].effective().requires_grad_()
        blocks, dg = dense_blocks(wide, address, g, maps, ids)
        compare(trace, address, 0, blocks, g.detach().numpy(), dg, 2e-5)
        seen += len(blocks) == 3
    assert seen >= (1 if experts else 3)


def dense_blocks(
    model: sv.Module, address: str, g: torch.Tensor, maps: list[torch.Tensor], ids: torch.Tensor
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Whole Hessians of a float64 module by central differences of first derivatives, and dL/dg."""
    sizes = [t.numel() for t in (g, *maps)]

    def gradient() -> torch.Tensor:
        override = core.Override(model.transformer(), {address: g})
        found = torch.autograd.grad(loss_of(model, ids), [g, *maps])
        override.stop()
        return torch.cat([t.flatten() for t in found])

    dg = gradient()[: sizes[0]].numpy()
    columns = []
    for t in (g, *maps):
        flat = t.detach().view(-1)
        for j in range(len(flat)):
            value, step = flat[j].item(), 1e-4
            flat[j] = value + step
            up = gradient()
            flat[j] = value - step
            columns.append((up - gradient()) / (2 * step))
            flat[j] = value
    whole = torch.stack(columns)
    whole = (whole + whole.T) / 2
    d = sizes[0]
    return {"vector": whole[:d, :d]} | ({"maps": whole[d:, d:], "joint": whole} if maps else {}), dg


def test_curvature_of_experts_that_no_token_reaches(tmp_path: pathlib.Path) -> None:
    model = tiny_module("standard", experts=8, active=1, expert_inner=8)
    ids = torch.zeros((1, 4), dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sv.trace(
        model, optimizer, tmp_path / "run.h5", every=1, curvature=lambda: loss_of(model, ids), curvature_every=1
    ) as tracer:
        loss_of(model, ids).backward()
        reached = [
            p.grad is not None and bool(p.grad.flatten(1).any(1).all())
            for n, p in model.named_parameters()
            if "experts" in n
        ]
        optimizer.step()
        tracer.step()
    assert reached and not all(reached)
    trace = sv.open_trace(tmp_path / "run.h5")
    for name in ("vector_trace", "maps_sharpness", "joint_frobenius"):
        assert np.isfinite(trace[name, "layers.0.mlp.input_norm"]).all(), name
    assert trace["maps_frobenius", "layers.0.mlp.input_norm"][0] > 0


def test_a_loss_of_something_else_has_no_curvature_here(tmp_path: pathlib.Path) -> None:
    """functional_call computes from other tensors: what the trace knows does not reach it."""
    model = tiny_module("standard")
    ids = torch.randint(0, 41, (1, 9), generator=torch.Generator().manual_seed(5))
    others = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss() -> torch.Tensor:
        logits = torch.func.functional_call(model, others, (ids[:, :-1],))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1, curvature=loss, curvature_every=1):
        loss_of(model, ids).backward()
        with pytest.raises(ValueError, match=r"does not depend on the vector of layers\.0\.attn\.input_norm"):
            optimizer.step()
    g, w = (torch.nn.Parameter(torch.ones(shape)) for shape in (6, (3, 6)))
    vector = core.TracedVector(
        address="final_norm", native="g", role="final", offset=0.0, eps=1e-6, stored=g.detach(),
        consumers=[("head", w.detach())],
    )  # fmt: skip
    optimizer = torch.optim.SGD([g, w], lr=0.01)
    with sv.trace(
        torch.nn.ParameterList([g, w]), optimizer, tmp_path / "map.h5", every=1, vectors=[vector],
        curvature=lambda: g.square().sum(), curvature_every=1,
    ):  # fmt: skip
        (g * w).square().sum().backward()
        with pytest.raises(ValueError, match="does not depend on the head of final_norm"):
            optimizer.step()


def test_what_does_not_learn_has_no_curvature(tmp_path: pathlib.Path) -> None:
    """A vector learns while one of its components does."""
    ids = torch.randint(0, 41, (1, 9), generator=torch.Generator().manual_seed(5))
    for frozen, measured in (("alpha", True), ("both", False), ("all", False)):
        model = tiny_module("hg+or")
        for name, p in model.named_parameters():
            if frozen == "all":
                p.requires_grad_(name == "embed.weight")
            elif name.startswith("layers.0.mlp.input_norm[gate]."):
                p.requires_grad_(frozen == "alpha" and name.endswith("beta"))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        with sv.trace(
            model,
            optimizer,
            tmp_path / f"{frozen}.h5",
            every=1,
            curvature=lambda m=model: loss_of(m, ids),
            curvature_every=1,
        ) as tracer:
            loss_of(model, ids).backward()
            optimizer.step()
            tracer.step()
        trace = sv.open_trace(tmp_path / f"{frozen}.h5")
        assert np.isfinite(trace["vector_trace", "layers.0.mlp.input_norm[gate]"]).all() == measured
        assert np.isfinite(trace["vector_trace", "final_norm"]).all() == (frozen != "all")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offset_counts_in_what_curvature_is_of(tmp_path: pathlib.Path, dtype: torch.dtype) -> None:
    """L = sum c (1 + w)^2 / 2: the curvature in log g is 2 c g^2, g = 1 + w as float64 adds it."""
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.tensor([0.001, 0.0019, -0.7, 0.25, 0.0, 1.5], dtype=dtype))
    c = torch.arange(1.0, 7.0, dtype=torch.float64)
    vector = core.TracedVector(
        address="final_norm", native="w", role="final", offset=1.0, eps=1e-6, stored=model.w.detach(), consumers=[]
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def loss() -> torch.Tensor:
        return (c * (1 + model.w.double()).square()).sum() / 2

    g = 1 + model.w.detach().double().numpy()
    with sv.trace(
        model, optimizer, tmp_path / "run.h5", every=1, vectors=[vector], curvature=loss, curvature_every=1
    ) as tracer:
        loss().backward()
        optimizer.step()
        tracer.step()
    found = sv.open_trace(tmp_path / "run.h5")["log_curvature", "final_norm"][0]
    # Gradients and products are rounded to the parameter's dtype.
    np.testing.assert_allclose(found, 2 * c.numpy() * g**2, rtol=2e-6 if dtype == torch.float32 else 2**-9)
