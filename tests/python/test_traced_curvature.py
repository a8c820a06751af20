"""Curvature of the loss (metrics 34 and 36) of our trainer and of transformers' Llama; the balance of noise and decay (20)."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import scalevec as sv
import torch
from curvature_reference import compare, hessians
from scalevec import _scalevec as core
from tiny_training import (
    MIXTURE,
    effective,
    experiment,
    final_norm_tracer,
    loop,
    loss_of,
    masters,
    named,
    optimizers_of,
    tiny_llama,
    tiny_module,
)  # fmt: skip


def second_derivatives(model, address: str, g: torch.Tensor, windows: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """Hessian and gradient of the loss of the windows in one vector of our model."""
    leaf = g.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), model.override({address: leaf}):
        logits = model.logits(windows[:, :-1]).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
    dg = torch.autograd.grad(loss, leaf, create_graph=True)[0]
    rows = [torch.autograd.grad(dg[j], leaf, retain_graph=True)[0] for j in range(len(g))]
    return torch.stack(rows), dg.detach().numpy()


def curved(strategy: str, curvature: int, model: str = "") -> core.Experiment:
    text = (
        experiment(every=2, strategy=strategy, model=model).toml().replace("curvature = 0", f"curvature = {curvature}")
    )
    return core.Experiment.parse(text.replace("curvature_windows = 1", "curvature_windows = 2"))


@pytest.mark.parametrize(
    ("strategy", "mixture"),
    [("standard", ""), ("hg[q]+dp[o,head]+or", ""), ("gemma", ""), ("standard", MIXTURE)],
    ids=named,
)
def test_curvature_of_a_training(tmp_path: pathlib.Path, strategy: str, mixture: str) -> None:
    """Against second derivatives of the same model, lent other vectors, by autograd in float64."""
    training = core.Training(curved(strategy, 4, mixture))
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
    plain = core.Training(curved(strategy, 0, mixture))
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
