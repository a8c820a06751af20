"""Curvature of the loss (metrics 34 and 36), entropy of attention (38) and the balance of noise and decay (20)."""

from __future__ import annotations

import copy
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import scalevec as sv
import torch
from scalevec import _scalevec as core
from tiny_training import effective, experiment, final_norm_tracer, loop, masters, optimizers_of, tiny_llama

BLOCKS = ("vector", "maps", "joint")


def dense(matrix: torch.Tensor, **options: int) -> core.Spectrum:
    return core.spectrum(lambda v: matrix @ v, len(matrix), **options)


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


def second_derivatives(model, address: str, g: torch.Tensor, windows: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """Hessian and gradient of the loss of the windows in one vector of our model."""
    leaf = g.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), model.override({address: leaf}):
        logits = model.logits(windows[:, :-1]).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
    dg = torch.autograd.grad(loss, leaf, create_graph=True)[0]
    rows = [torch.autograd.grad(dg[j], leaf, retain_graph=True)[0] for j in range(len(g))]
    return torch.stack(rows), dg.detach().numpy()


def curved(strategy: str, curvature: int) -> core.Experiment:
    text = experiment(every=2, strategy=strategy).toml().replace("curvature = 0", f"curvature = {curvature}")
    return core.Experiment.parse(text.replace("curvature_windows = 1", "curvature_windows = 2"))


@pytest.mark.parametrize("strategy", ["standard", "hg[q]+dp[o,head]+or", "gemma"])
def test_curvature_of_a_training(tmp_path: pathlib.Path, strategy: str) -> None:
    """Against second derivatives of the same model, lent other vectors, by autograd in float64."""
    training = core.Training(curved(strategy, 4))
    states = [masters(training)]
    training.save_model(tmp_path / "model0")

    def on_step(event) -> bool:
        states.append(masters(training))
        if event["step"] == 3:
            training.save_model(tmp_path / "model3")
        return False

    core.run_training(training, tmp_path / "run", resume=False, command="t", on_step=on_step)
    trace = sv.open_trace(tmp_path / "run/trace.h5")
    assert trace.steps.tolist() == [1, 2, 4, 6]
    addresses = [site.address for site in trace.sites]
    measured = np.isfinite(trace["vector_trace"])
    assert measured[[0, 2]].all() and not measured[[1, 3]].any()
    source = core.Corpus.synthetic(vocabulary=37, order=1, concentration=0.1, seed=0)
    order = core.WindowOrder(source.windows("train", 16), 0)
    for row, step in ((0, 1), (2, 4)):
        model = sv.load(tmp_path / f"model{step - 1}", dtype="float64")
        windows = source.read("train", [order.at(4 * (step - 1) + i) for i in range(2)], 16)
        for address in addresses[row :: 1 if strategy == "standard" else 4]:
            g = torch.from_numpy(effective(states[step - 1], address).copy())
            hessian, dg = second_derivatives(model, address, g, windows)
            compare(trace, address, row, {"vector": hessian}, g.numpy(), dg, 1e-7)
            # The joint block's largest is no smaller; both are estimates from below, of which the joint one has to go further.
            assert trace["joint_sharpness", address][row] >= trace["maps_sharpness", address][row] * 0.5
    # Who looks changes nothing.
    plain = core.Training(curved(strategy, 0))
    core.run_training(plain, tmp_path / "plain", resume=False, command="t", on_step=lambda _: None)
    for slot, tensor in masters(plain).items():
        assert torch.equal(tensor, states[-1][slot]), slot
    assert "log_curvature" not in sv.open_trace(tmp_path / "plain/trace.h5").columns


def test_curvature_of_a_training_in_its_maps(tmp_path: pathlib.Path) -> None:
    """Vector, maps and both of our trainer, against whole Hessians of transformers' Llama with its weights."""
    transformers = pytest.importorskip("transformers")
    training = core.Training(curved("standard", 6))
    training.save_model(tmp_path / "model")
    core.run_training(training, tmp_path / "run", resume=False, command="t", on_step=lambda _: None)
    trace = sv.open_trace(tmp_path / "run/trace.h5")
    sv.load(tmp_path / "model").export_as("llama", tmp_path / "llama")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float64).eval()
    source = core.Corpus.synthetic(vocabulary=37, order=1, concentration=0.1, seed=0)
    order = core.WindowOrder(source.windows("train", 16), 0)
    windows = source.read("train", [order.at(i) for i in range(2)], 16)
    layer = "model.layers.1."
    slots = [f"{layer}{name}.weight" for name in ("input_layernorm", *(f"self_attn.{b}_proj" for b in "qkv"))]
    stood = dict(peer.named_parameters())

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            given = dict(zip(slots, tensors, strict=True))
            logits = torch.func.functional_call(peer, given, kwargs={"input_ids": windows[:, :-1]}).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    g, *maps = (stood[slot].detach() for slot in slots)
    blocks = hessians(loss, g, maps)
    leaf = g.clone().requires_grad_()
    dg = torch.autograd.grad(loss(leaf, *maps), leaf)[0]
    compare(trace, "layers.1.attn.input_norm", 0, blocks, g.numpy(), dg.numpy(), 1e-6)


def test_curvature_of_a_pytorch_loop(tmp_path: pathlib.Path) -> None:
    """Against whole Hessians by torch, of vector and maps; with dropout, whose numbers the training draws again."""

    def trained(traced: bool):
        model = tiny_llama()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        ids = torch.randint(0, 41, (2, 9), generator=torch.Generator().manual_seed(5))
        optimizers = optimizers_of(model, "adamw")
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        tracer = None
        if traced:
            tracer = sv.trace(
                model, optimizers, tmp_path / "run.h5", every=2, curvature_every=4,
                curvature=lambda: model.eval()(input_ids=ids, labels=ids).loss + 0 * model.train().lm_head.weight[0, 0],
            )  # fmt: skip
        torch.manual_seed(7)
        loop(model, optimizers, tracer, steps=5)
        if tracer is not None:
            assert tracer.close() == ""
        return model, ids, before

    model, ids, before = trained(traced=True)
    plain = trained(traced=False)[0]
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b), name
    trace = sv.open_trace(tmp_path / "run.h5")
    assert trace.steps.tolist() == [1, 2, 4]
    assert np.isfinite(trace["vector_trace"]).all(1).tolist() == [True, False, True]
    wide = tiny_llama().double().eval()
    names = {
        "layers.1.mlp.input_norm": ("model.layers.1.post_attention_layernorm", ["model.layers.1.mlp.gate_proj"]),
        "final_norm": ("model.norm", []),
    }
    for address, (norm, maps) in names.items():
        maps = maps and [*maps, "model.layers.1.mlp.up_proj"]
        slots = [f"{name}.weight" for name in (norm, *maps)]

        def loss(*tensors: torch.Tensor, slots: list[str] = slots) -> torch.Tensor:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                given = {name: t.double() for name, t in before.items()} | dict(zip(slots, tensors, strict=True))
                return torch.func.functional_call(wide, given, kwargs={"input_ids": ids, "labels": ids}).loss

        g = before[slots[0]].double()
        blocks = hessians(loss, g, [before[name].double() for name in slots[1:]])
        if not maps:
            blocks = {"vector": blocks["vector"]}
        leaf = g.clone().requires_grad_()
        dg = torch.autograd.grad(loss(leaf, *(before[name].double() for name in slots[1:])), leaf)[0]
        compare(trace, address, 0, blocks, g.numpy(), dg.numpy(), 1e-5)


def tiny_module(strategy: str, **sizes: int) -> sv.Module:
    """Its vectors, plain or of components, differ from 1 by channel and site."""
    sizes = {
        "vocabulary": 41,
        "width": 16,
        "layers": 2,
        "head_dim": 8,
        "kv_heads": 1,
        "inner": 20,
        "context": 16,
    } | sizes
    model = sv.Module.new(strategy, **sizes)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1 and len(p) > 1:
                p.add_(torch.empty_like(p).uniform_(-0.4, 0.4, generator=random))
            elif len(p) == 1:
                p.mul_(0.8)
            else:
                p.mul_(3)
    return model


def loss_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("strategy", ["hg+dnp+or", "gemma", "ap+er"])
def test_curvature_of_a_module(tmp_path: pathlib.Path, strategy: str) -> None:
    """Of effective vectors and maps, against differences of gradients of the same model in float64; nothing is moved by it."""
    model = tiny_module(strategy)
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
    for address in [site.address for site in trace.sites][:: 2 if strategy == "gemma" else 3]:
        maps = [wide.get_parameter(names[w.data_ptr()]) for _, w in vectors[address].maps]
        g = transformer.scales[transformer.scales.index_of(address)].effective().requires_grad_()
        blocks, dg = dense_blocks(wide, address, g, maps, ids)
        compare(trace, address, 0, blocks, g.detach().numpy(), dg, 2e-5)
        seen += len(blocks) == 3
    assert seen >= 3


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


def test_misuse_is_told(tmp_path: pathlib.Path) -> None:
    model = tiny_llama()
    optimizers = optimizers_of(model, "sgd")
    half = core.TracedVector(
        address="final_norm", native="norm.weight", role="final", offset=0.0, eps=1e-6, stored=model.model.norm.weight.detach(),
        consumers=[("head", model.lm_head.weight.detach()[:20])],
    )  # fmt: skip
    for options in ({"vectors": [half], "curvature": lambda: None}, {"curvature": lambda: None, "curvature_every": 15}):
        with pytest.raises(ValueError, match="curvature"):
            sv.trace(model, optimizers, tmp_path / "b.h5", **options)
    assert not (tmp_path / "b.h5.live").exists()
    text = experiment(every=2).toml()
    for old, new in (
        ("curvature = 0", "curvature = 3"), ("curvature = 0", "curvature = -2"),
        ("curvature_windows = 1", "curvature_windows = 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"trace\.curvature"):
            core.Experiment.parse(text.replace(old, new))
    with pytest.raises(ValueError, match=r"trace\.curvature_windows"):
        core.Experiment.parse(text.replace("curvature = 0", "curvature = 2").replace("windows = 1", "windows = 5"))
    tracer = final_norm_tracer(tmp_path / "a.h5", torch.ones(8))
    for address, column, values, code in (
        ("final", "mean", [1.0], "E_ADDR"), ("final_norm", "means", [1.0], "E_VALUE"),
        ("final_norm", "log_curvature", [1.0] * 8, "E_VALUE"), ("final_norm", "mean", [1.0] * 8, "E_SHAPE"),
        ("final_norm", "elr", [1.0], "E_SHAPE"),
    ):  # fmt: skip
        with pytest.raises(sv.Error) as caught:
            tracer.note(address, column, values)
        assert caught.value.code == code
    tracer.note("final_norm", "log_slope", [3.5])
    tracer.before(1, lambda _: {"rule": "other"})
    tracer.after(1, lambda _: {"rule": "other"})
    tracer.before(2, lambda _: {"rule": "other"})
    tracer.after(2, lambda _: {"rule": "other"})
    tracer.close()
    noted = sv.open_trace(tmp_path / "a.h5")["log_slope", "final_norm"]
    assert noted[0] == 3.5 and np.isnan(noted[1])


def entropy_of_attention(folder: pathlib.Path, address: str, ids: torch.Tensor) -> float:
    """Of queries and keys beside a q_norm of a saved model, by transformers' rotary embedding and a softmax."""
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    model, tokens = sv.load(folder), ids.shape[1]
    spec = json.loads((folder / "config.json").read_text())
    base = spec["layers"][0]["layer"]["attn"]["rope"]["base"]
    angles = torch.arange(tokens).double()[:, None] * base ** -(torch.arange(0, 8, 2) / 8).double()
    cos, sin = (f(torch.cat([angles, angles], 1))[None] for f in (torch.cos, torch.sin))
    with model.taps(address[:-6] + "*_norm", "scaled") as taps:
        model.logits(ids)
    q, k = (taps[address[:-6] + name].scaled[0].double().transpose(1, 2) for name in ("q_norm", "k_norm"))
    q, k = modeling.apply_rotary_pos_emb(q, k, cos, sin)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = (q @ k.transpose(2, 3) / math.sqrt(8)).masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
    entropy = float(torch.special.entr(scores.softmax(-1)).sum(-1).mean())
    assert 0 < entropy < np.mean(np.log(np.arange(1, tokens + 1))) - 1e-6
    return entropy


def test_entropy_of_attention(tmp_path: pathlib.Path) -> None:
    """Of the model as saved before the step."""
    training = core.Training(experiment(every=2, strategy="gemma"))
    training.save_model(tmp_path / "model0")
    core.run_training(training, tmp_path / "run", resume=False, command="t", on_step=lambda _: None)
    trace = sv.open_trace(tmp_path / "run/trace.h5")
    source = core.Corpus.synthetic(vocabulary=37, order=1, concentration=0.1, seed=0)
    order = core.WindowOrder(source.windows("train", 16), 0)
    ids = source.read("train", [order.at(0)], 16)[:, :-1]
    seen = 0
    for site in trace.sites:
        found = trace["attention_entropy", site.address]
        assert np.isfinite(found).all() == site.address.endswith("q_norm")
        if not site.address.endswith("q_norm"):
            continue
        assert found[0] == pytest.approx(entropy_of_attention(tmp_path / "model0", site.address, ids), rel=1e-6)
        assert len(set(found)) == len(found)
        seen += 1
    assert seen == 2


def test_entropy_of_attention_of_a_module(tmp_path: pathlib.Path) -> None:
    """The first text of the first batch stands for the step."""
    model = tiny_module("gemma", width=32, kv_heads=2)
    random = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = [torch.randint(0, 41, (2, 13), generator=random) for _ in range(3)]
    expected = []
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        for step in (1, 2):
            model.save(tmp_path / f"model{step}")
            for ids in batches[step - 1 :]:
                loss_of(model, ids).backward()
            optimizer.step()
            tracer.step()
            first = batches[step - 1][:1, :-1]
            expected.append(
                [entropy_of_attention(tmp_path / f"model{step}", f"layers.{i}.attn.q_norm", first) for i in (0, 1)]
            )
    trace = sv.open_trace(tmp_path / "run.h5")
    found = np.stack([trace["attention_entropy", f"layers.{i}.attn.q_norm"] for i in (0, 1)], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(np.unique(found)) == 4


@pytest.mark.parametrize(
    ("strategy", "more"),
    [("gemma", "kv_heads = 1"), ("gemma", "head_dim = 32"), ("unified", "kv_heads = 1"), ("dnp[k]", "kv_heads = 1")],
)
def test_entropy_where_heads_are_one_or_norms_are_not_two(tmp_path: pathlib.Path, strategy: str, more: str) -> None:
    text = experiment(every=1, strategy=strategy, steps=2).toml()
    name = more.split(" = ")[0]
    text = "\n".join(more if line.startswith(f"{name} = ") else line for line in text.splitlines())
    training = core.Training(core.Experiment.parse(text))
    core.run_training(training, tmp_path / "run", resume=False, command="t", on_step=lambda _: None)
    trace = sv.open_trace(tmp_path / "run/trace.h5")
    found = trace["attention_entropy"]
    there = [site.address.endswith("q_norm") for site in trace.sites]
    assert np.isfinite(found).all(0).tolist() == there and any(there) == (strategy == "gemma")
    assert (found[:, there] > 0).all() and (found[:, there] < math.log(16)).all()


@pytest.mark.parametrize("ours", [False, True])
def test_what_curvature_runs_is_no_input_of_the_step(tmp_path: pathlib.Path, ours: bool) -> None:
    random = torch.Generator().manual_seed(5)
    few, *batches = (torch.randint(0, 41, (1, 9), generator=random) for _ in range(4))
    for name in ("plain", "curved"):
        model = tiny_module("gemma") if ours else tiny_llama()

        def loss(ids: torch.Tensor, model: torch.nn.Module = model) -> torch.Tensor:
            return loss_of(model, ids) if ours else model(input_ids=ids, labels=ids).loss

        closure = (lambda loss=loss: loss(few)) if name == "curved" else None
        (optimizer,) = optimizers_of(model, "adamw")
        with sv.trace(
            model, optimizer, tmp_path / f"{name}.h5", every=1, inputs=True, curvature=closure, curvature_every=2
        ) as tracer:
            for ids in batches:
                loss(ids).backward()
                optimizer.step()
                tracer.step()
                optimizer.zero_grad()
    plain, curved = (sv.open_trace(tmp_path / f"{name}.h5") for name in ("plain", "curved"))
    for column in plain.columns:
        np.testing.assert_array_equal(plain[column], curved[column], err_msg=column)
    assert np.isfinite(curved["vector_trace"]).all(1).tolist() == [True, True, False]


def test_noise_and_decay_lead_where_they_are_said_to(tmp_path: pathlib.Path) -> None:
    """Gradients of pure noise, as in the simulations behind the formula: C = 4 outputs, no decay of g, 0.75 of 0.74."""
    random = torch.Generator().manual_seed(0)
    width, outputs, sigma, rate, decay = 256, 4, 1.0, 0.05, 0.025
    g = torch.nn.Parameter(torch.ones(width))
    w = torch.nn.Parameter(torch.ones(outputs, width))
    optimizer = torch.optim.SGD([{"params": [w], "weight_decay": decay}, {"params": [g], "weight_decay": 0.0}], lr=rate)
    vector = core.TracedVector(
        address="final_norm", native="norm.weight", role="final", offset=0.0, eps=1e-6, stored=g.detach(),
        consumers=[("head", w.detach())],
    )  # fmt: skip
    module = torch.nn.ParameterList([g, w])
    ratios = []
    with sv.trace(module, optimizer, tmp_path / "run.h5", every=50, vectors=[vector]) as tracer:
        for step in range(3000):
            noise = sigma * torch.randn(outputs, width, generator=random)
            (noise * w * g).sum().backward()
            optimizer.step()
            tracer.step()
            optimizer.zero_grad()
            if step >= 1000:
                ratios.append(float(g.detach().square().sum() / w.detach().square().sum()))
    predicted = sv.open_trace(tmp_path / "run.h5")["noise_balance", "final_norm"]
    assert np.isnan(predicted[0]) and np.isfinite(predicted[1:]).all()
    exact = (2 * decay + rate * sigma**2) / (outputs * rate * sigma**2)
    assert exact == pytest.approx(0.5)
    # The variance is from 1,024 differences: it is off by sqrt(2 / 1024) = 4.4 %, the ratio by half of that.
    assert np.std(predicted[1:] / exact - 1) < 0.05 and np.mean(predicted[1:]) == pytest.approx(exact, rel=0.02)
    assert np.mean(ratios) == pytest.approx(exact, rel=0.1)
