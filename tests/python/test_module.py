"""Our transformer as a torch.nn.Module: trained, traced and saved in a PyTorch loop."""

from __future__ import annotations

import copy
import pathlib
import pickle

import numpy as np
import pytest
import scalevec as sv
import torch
from tiny_training import loss_of

SIZES = {"vocabulary": 41, "width": 32, "layers": 2, "head_dim": 8, "kv_heads": 2, "inner": 48, "context": 32}


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    loss = loss_of(model, ids)
    loss.backward()
    optimizer.step()
    return loss.item()


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 41, (4, 17), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("strategy", ["standard", "unified", "hg+dp+er", "gemma"])
def test_a_loop_of_ones_own_trains_any_strategy_and_is_traced(tmp_path: pathlib.Path, strategy: str) -> None:
    model, alone = (sv.Module.new(strategy, seed=5, **SIZES) for _ in range(2))
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {
        n: tuple(shape) for n, shape in sv._scalevec.tensor_slots(model.spec.config()).items()
    }
    optimizer, other = (
        torch.optim.AdamW(m.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1) for m in (model, alone)
    )
    losses = []
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        for ids in batches(4) * 3:
            optimizer.zero_grad()
            losses.append(step(model, optimizer, ids))
            tracer.step()
        assert tracer.gauge_faults == []
    assert losses[-1] < losses[0] - 0.1
    for ids in batches(4) * 3:
        other.zero_grad()
        step(alone, other, ids)
    for (name, a), b in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b), name
    trace = sv.open_trace(tmp_path / "run.h5")
    assert trace.steps.tolist() == list(range(1, 13))

    # What the file holds is what the loop has, and what every command reads.
    model.save(tmp_path / "model")
    loaded = sv.load(tmp_path / "model")
    ids = batches(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(loaded.transformer.logits(ids), model(ids), rtol=1e-5, atol=1e-5)
    for site, effective in ((s.address, s.effective) for s in loaded.scales):
        np.testing.assert_allclose(trace["effective", site][-1], np.asarray(effective), rtol=1e-6, err_msg=site)
    again = sv.Module.open(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(ids), model(ids))


def test_gradients_are_those_of_scalevec_train() -> None:
    """The same net, weights and windows: what our own loop moves in a step of SGD."""
    text = (
        'seed = 5\n[model]\npreset = "nano"\nstrategy = "unified"\nwidth = 32\nlayers = 2\nhead_dim = 8\n'
        "kv_heads = 2\ninner = 48\n"
        '[data]\nvocabulary = 41\ncontext = 16\nbatch = 4\n[schedule]\nkind = "constant"\nwarmup = 0\n'
        '[optimizer]\nrule = "sgd"\nlearning_rate = 0.5\nmomentum = 0.0\nweight_decay = 0.0\nclip = 0.0\n[train]\nsteps = 1\n'
    )
    training = sv._scalevec.Training(sv.Experiment.parse(text))
    model = sv.Module.new("unified", seed=5, **(SIZES | {"context": 16}))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ids = training.next_windows(4)
    ours = step(model, optimizer, ids)
    event = training.advance()
    assert ours == pytest.approx(event["loss"], abs=1e-5)
    moved = 0
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), training.tensors[name], rtol=1e-5, atol=1e-6, msg=name)
        moved += not torch.equal(p.detach(), start[name])
    assert moved > 20


def test_other_families_are_opened_and_trained_on(tiny_models) -> None:
    model = sv.Module.open(tiny_models["gemma3"].file)
    reference = sv.load(tiny_models["gemma3"].file)
    ids = batches(1)[0] % reference.transformer.logits(torch.tensor([[1]])).shape[-1]
    with torch.no_grad():
        assert torch.equal(model(ids), reference.transformer.logits(ids))
    before = step(model, torch.optim.SGD(model.parameters(), lr=0.05), ids)
    after = step(model, torch.optim.SGD(model.parameters(), lr=0.05), ids)
    assert after < before
    with pytest.raises(ValueError, match="E_CONFIG"):
        model.save("nowhere")


def test_a_module_follows_its_parameters_to_another_dtype() -> None:
    model = sv.Module.new("standard", **SIZES)
    ids = batches(1)[0]
    with torch.no_grad():
        single = model(ids)
        double = model.double()(ids)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    assert not torch.equal(single.double(), double)


def test_gradients_go_to_the_tensors_that_are_there_now() -> None:
    model = sv.Module.new("standard", **SIZES)
    ids = batches(1)[0]
    first = model(ids)
    old = model.head.weight
    model.head.weight = torch.nn.Parameter(old.detach())  # the same memory
    model(ids).square().sum().backward()
    assert old.grad is None and model.head.weight.grad.abs().sum() > 0
    given = {name: (1.5 * p.detach()).requires_grad_() for name, p in model.named_parameters()}
    out = torch.func.functional_call(model, given, (ids,))
    assert not torch.allclose(out, first)
    out.square().sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in given.values())
    assert torch.equal(model(ids), first)
    with torch.no_grad():
        model.head.weight = model.embed.weight  # tied by hand
        assert not torch.equal(model(ids), first)


def test_a_copy_is_a_model_of_its_own() -> None:
    model = sv.Module.new("unified", **SIZES)
    model.head.weight.requires_grad_(False)
    twin = copy.deepcopy(model)
    ids = batches(1)[0]
    with torch.no_grad():
        before = model(ids)
        assert torch.equal(twin(ids), before)
        for p in twin.parameters():
            p.mul_(1.1)
        assert torch.equal(model(ids), before) and not torch.equal(twin(ids), before)
    assert not twin.head.weight.requires_grad and twin.embed.weight.requires_grad


def test_norms_behind_a_bias_are_not_judged(tmp_path: pathlib.Path) -> None:
    """Norm(W x + b) depends on the size of W: right gradients are no fault."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=32, attention_bias=True, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.endswith("bias"):
                p.normal_()
    theirs.save_pretrained(tmp_path / "biased")
    model = sv.Module.open(tmp_path / "biased")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        step(model, optimizer, batches(1)[0])
        tracer.step()
        assert tracer.gauge_faults == []
    trace = sv.open_trace(tmp_path / "run.h5")
    for column in ("scale_inv_residual", "elr_invariant"):
        assert np.isnan(trace[column, "layers.0.attn.q_norm"]).all()


@pytest.mark.parametrize("curved", [False, True])
def test_some_of_a_modules_vectors_are_traced(tmp_path: pathlib.Path, curved: bool) -> None:
    model = sv.Module.new("gemma", **SIZES)
    vectors = [
        v
        for v in model.spec.traced_vectors({n: p.detach() for n, p in model.named_parameters()})
        if v.address == "layers.0.mlp.input_norm"
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = batches(1)[0]

    with pytest.raises(ValueError, match="inputs=True needs"):
        sv.trace(model, optimizer, tmp_path / "a.h5", vectors=vectors, inputs=True)
    with sv.trace(
        model,
        optimizer,
        tmp_path / "run.h5",
        every=1,
        vectors=vectors,
        curvature=(lambda: loss_of(model, ids)) if curved else None,
        curvature_every=1,
    ) as tracer:
        step(model, optimizer, ids)
        tracer.step()
    trace = sv.open_trace(tmp_path / "run.h5")
    assert [site.address for site in trace.sites] == ["layers.0.mlp.input_norm"]
    assert not curved or np.isfinite(trace["joint_trace", "layers.0.mlp.input_norm"]).all()


def test_what_a_module_is_refused_for() -> None:
    model = sv.Module.new("standard", **SIZES)
    with pytest.raises(TypeError, match="save"):
        pickle.dumps(model)
    with pytest.raises(ValueError, match="strategy"):
        sv.Module.new("nosuch")
