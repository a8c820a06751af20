"""The tracer in a PyTorch loop of somebody else's."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest
import scalevec as sv
import torch
from tiny_training import Ids, loop, optimizers_of, tiny_llama


@pytest.mark.parametrize("rule", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("clear_first", [False, True])
def test_a_pytorch_loop_is_traced_and_not_changed(tmp_path: pathlib.Path, rule: str, clear_first: bool) -> None:
    plain, watched = tiny_llama(), tiny_llama()
    loop(plain, optimizers_of(plain, rule), clear_first=clear_first)
    start = {n: p.detach().clone() for n, p in watched.named_parameters()}
    optimizers = optimizers_of(watched, rule)
    with sv.trace(watched, optimizers, tmp_path / "run.h5", every=1) as tracer:
        loop(watched, optimizers, tracer, clear_first=clear_first)
        assert tracer.gauge_faults == []
    for (name, a), (_, b) in zip(plain.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(start["model.norm.weight"], watched.model.norm.weight.detach())
    trace = sv.open_trace(tmp_path / "run.h5")
    assert trace.steps.tolist() == [1, 2, 3, 4]
    address = "layers.1.mlp.input_norm"
    norm = watched.model.layers[1].post_attention_layernorm
    np.testing.assert_allclose(trace["effective", address][-1], norm.weight.detach().numpy(), rtol=1e-6)
    mlp = watched.model.layers[1].mlp
    columns = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach().norm(dim=0).numpy()
    np.testing.assert_allclose(trace["column_norm", address][-1], columns, rtol=1e-6)
    assert np.all(trace["gauge_residual", address] < 1e-5) and np.any(trace["gauge_residual", address] > 0)
    # In the first step g is 1 and the rule decides.
    stretch = 0.2 * math.sqrt(48) if rule == "muon" else 1.0
    np.testing.assert_allclose(trace["elr", address][0], 0.01 * stretch, rtol=1e-6)


def test_a_trace_goes_on_with_its_checkpoint(tmp_path: pathlib.Path) -> None:
    whole, cut = tiny_llama(), tiny_llama()
    for model, name in ((whole, "whole.h5"), (cut, "cut.h5")):
        optimizers = optimizers_of(model, "adamw")
        tracer = sv.trace(model, optimizers, tmp_path / name, every=2)
        loop(model, optimizers, tracer, steps=3)
        if model is cut:
            state = tracer.state_dict()
            loop(model, optimizers, tracer, steps=1)  # a row that the resumed loop makes again
            tracer.close()
            model = tiny_llama()
            optimizers = optimizers_of(model, "adamw")
            loop(model, optimizers, steps=3)
            tracer = sv.trace(model, optimizers, tmp_path / name, every=2, resume=state)
        loop(model, optimizers, tracer, steps=3)
        assert tracer.close() == ""
    a, b = sv.open_trace(tmp_path / "whole.h5"), sv.open_trace(tmp_path / "cut.h5")
    assert a.steps.tolist() == b.steps.tolist() == [1, 2, 4, 6]
    for column in a.columns:
        np.testing.assert_array_equal(a[column], b[column], err_msg=column)


def test_a_loop_put_wrongly_is_refused(tmp_path: pathlib.Path) -> None:
    model = tiny_llama()
    others = torch.optim.AdamW(tiny_llama().parameters(), lr=0.01)
    with pytest.raises(ValueError, match="the optimizer moves no parameter of this model"):
        sv.trace(model, others, tmp_path / "others.h5")
    assert not list(tmp_path.iterdir())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        loop(model, [optimizer], tracer, steps=2)
        with pytest.raises(RuntimeError, match=r"tracer.step\(\) has not been called since step 3"):
            loop(model, [optimizer], steps=2)
        tracer.step()
        loop(model, [optimizer], tracer, steps=1)
    loop(model, [optimizer], steps=2)  # the tracer is closed
    assert sv.open_trace(tmp_path / "run.h5").steps.tolist() == [1, 2, 3, 4]


def test_a_forgotten_reader_is_named(tmp_path: pathlib.Path) -> None:
    """A gradient that a wrong reduction doubled is what the gauge identity is for."""
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.model.layers[1].input_layernorm.weight.register_hook(lambda g: 2 * g)
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        loop(model, [optimizer], tracer)
        assert [fault[0] for fault in tracer.gauge_faults] == ["layers.1.attn.input_norm"]


@pytest.mark.parametrize("in_optimizer", [False, True])
def test_a_frozen_reader_leaves_its_norm_without_figures_of_gradients(
    tmp_path: pathlib.Path, in_optimizer: bool
) -> None:
    model = tiny_llama()
    frozen = model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    still = model.model.layers[1].post_attention_layernorm.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if in_optimizer or p.requires_grad],
        lr=0.01, betas=(0.9, 0.95), weight_decay=0.1,
    )  # fmt: skip
    start = frozen.clone()
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        loop(model, [optimizer], tracer)
        assert tracer.gauge_faults == []
    assert torch.equal(frozen, start)
    trace = sv.open_trace(tmp_path / "run.h5")
    whole = ["layers.0.mlp.input_norm", "layers.1.attn.input_norm", "final_norm"]
    for column in ("gauge_residual", "amplification", "vector_share", "saliency", "radial_align"):
        assert np.isnan(trace[column, "layers.0.attn.input_norm"]).all(), column
        for address in whole:
            assert np.isfinite(trace[column, address]).all(), (column, address)
    # What moves is measured all the same, by the rule of the maps that move.
    attn = model.model.layers[0].self_attn
    second = torch.cat([optimizer.state[m.weight]["exp_avg_sq"] for m in (attn.k_proj, attn.v_proj)]).double()
    inverse = (1 / ((second / (1 - 0.95**4)).sqrt() + 1e-8)).mean(0).numpy()
    g = trace["effective", "layers.0.attn.input_norm"][2]
    np.testing.assert_allclose(trace["elr", "layers.0.attn.input_norm"][3], 0.01 * np.abs(g), rtol=1e-6)
    np.testing.assert_allclose(trace["elr_state", "layers.0.attn.input_norm"][3], 0.01 * g**2 * inverse, rtol=1e-5)
    # A frozen vector is not decayed.
    assert torch.equal(still, torch.ones(32))
    assert trace["decay_horizon", "layers.1.mlp.input_norm"].tolist() == [0.0] * 4
    np.testing.assert_allclose(trace["decay_horizon", "final_norm"], 0.001 * np.arange(1, 5), rtol=1e-12)


def test_a_trace_that_begins_late_takes_the_optimizers_count_of_steps(tmp_path: pathlib.Path) -> None:
    model = tiny_llama()
    (optimizer,) = optimizers_of(model, "adamw")
    loop(model, [optimizer], steps=3)
    g = model.model.norm.weight.detach().double().numpy().copy()
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        loop(model, [optimizer], tracer, steps=1)
    second = optimizer.state[model.lm_head.weight]["exp_avg_sq"].double() / (1 - 0.95**4)
    expected = 0.01 * g**2 * (1 / (second.sqrt() + 1e-8)).mean(0).numpy()
    np.testing.assert_allclose(sv.open_trace(tmp_path / "run.h5")["elr_state", "final_norm"][0], expected, rtol=1e-5)


def test_misuse_of_the_tracer_is_told(tmp_path: pathlib.Path) -> None:
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sv.trace(model, optimizer, tmp_path / "run.h5") as tracer, pytest.raises(RuntimeError, match="has not moved"):
        tracer.step()
    with pytest.raises(TypeError, match="LlamaForCausalLM"):
        sv.trace(torch.nn.Linear(2, 2), optimizer, tmp_path / "other.h5")
    with pytest.raises(TypeError, match="RMSprop"):
        sv.trace(model, torch.optim.RMSprop(model.parameters()), tmp_path / "third.h5")
    with pytest.raises(TypeError, match=r"a torch\.nn\.Module, then .*; got SGD, LlamaForCausalLM"):
        sv.trace(optimizer, model, tmp_path / "swapped.h5")


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), torch.nn.DataParallel])
@pytest.mark.parametrize("inputs", [False, True])
def test_a_model_that_is_wrapped_is_traced_itself(tmp_path: pathlib.Path, wrap, inputs: bool) -> None:
    traces = []
    for name in ("plain", "wrapped"):
        torch.compiler.reset()
        model = tiny_llama()
        optimizers = optimizers_of(model, "adamw")
        run = wrap(model) if name == "wrapped" else model
        if run is not model:
            with pytest.raises(TypeError, match="give the model itself"):
                sv.trace(run, optimizers, tmp_path / "refused.h5")
        with sv.trace(model, optimizers, tmp_path / f"{name}.h5", every=1, inputs=inputs) as tracer:
            loop(run, optimizers, tracer)
            assert tracer.gauge_faults == []
        traces.append(sv.open_trace(tmp_path / f"{name}.h5"))
    plain, wrapped = traces
    assert list(plain.columns) == list(wrapped.columns) and ("input_moment" in plain.columns) == inputs
    for column in plain.columns:
        np.testing.assert_array_equal(np.isfinite(wrapped[column]), np.isfinite(plain[column]), err_msg=column)
    # A compiled forward rounds in another order.
    np.testing.assert_allclose(wrapped["effective"], plain["effective"], rtol=1e-5)


def test_inputs_that_are_not_seen_are_told(tmp_path: pathlib.Path) -> None:
    model = tiny_llama()
    optimizers = optimizers_of(model, "sgd")
    run = torch.compile(model, backend="eager")
    loop(run, optimizers, steps=1)  # without the hooks, as from now on
    with (
        sv.trace(model, optimizers, tmp_path / "run.h5", every=2, inputs=True) as tracer,
        pytest.raises(RuntimeError, match=r"seen no norm's input in step 1; .* torch\.compiler\.reset\(\)"),
    ):
        loop(run, optimizers, tracer)
    torch.compiler.reset()
    with sv.trace(model, optimizers, tmp_path / "again.h5", every=2, inputs=True) as tracer:
        loop(run, optimizers, tracer)
    assert np.isfinite(sv.open_trace(tmp_path / "again.h5")["input_moment"]).all()


@pytest.mark.parametrize("make", [tiny_llama, lambda: sv.Module.new("standard", vocabulary=41, layers=1)])
@pytest.mark.parametrize("how", ["dtype", "assign", "another"])
def test_parameters_that_went_elsewhere_are_told(tmp_path: pathlib.Path, make, how: str) -> None:
    """What the trace watches would never move again."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sv.trace(model, optimizer, tmp_path / "run.h5"):
        if how == "dtype":
            model.double()
        elif how == "assign":
            model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)
        else:
            model.register_parameter("embed_too", torch.nn.Parameter(torch.ones(3)))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match=r"embed.* is not, or not where, it was"):
            optimizer.step()


def test_transformers_trainer_is_traced_by_a_callback(tmp_path: pathlib.Path) -> None:
    transformers = pytest.importorskip("transformers")

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=2, max_steps=5, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, learning_rate=0.01,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=tiny_llama(), args=arguments, train_dataset=Ids(),
        callbacks=[sv.trace_callback(tmp_path / "run.h5", every=2)],
    )  # fmt: skip
    trainer.train()
    trace = sv.open_trace(tmp_path / "run.h5")
    assert trace.finished and trace.steps.tolist() == [1, 2, 4]
    assert np.all(trace["gauge_residual"][:, :32] < 1e-5)


def test_a_trainer_that_goes_on_from_its_checkpoint_goes_on_with_the_trace(tmp_path: pathlib.Path) -> None:
    transformers = pytest.importorskip("transformers")

    def train(name: str, trace: str, resume: str | None = None, stop: int | None = None) -> None:
        class Stop(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **given):
                control.should_training_stop = stop is not None and state.global_step >= stop

        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / name), per_device_train_batch_size=2, max_steps=6, report_to=[], use_cpu=True,
            save_strategy="steps", save_steps=3, disable_tqdm=True, learning_rate=0.01,
        )  # fmt: skip
        callbacks = [sv.trace_callback(tmp_path / trace, every=1), Stop()]
        trainer = transformers.Trainer(model=tiny_llama(), args=arguments, train_dataset=Ids(), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)

    train("whole", "whole.h5")
    train("cut", "cut.h5", stop=5)  # beyond its checkpoint: rows 4 and 5 are made again
    assert sv.open_trace(tmp_path / "cut.h5").steps.tolist() == [1, 2, 3, 4, 5]
    train("cut", "cut.h5", resume=str(tmp_path / "cut/checkpoint-3"))
    whole, cut = sv.open_trace(tmp_path / "whole.h5"), sv.open_trace(tmp_path / "cut.h5")
    assert whole.steps.tolist() == cut.steps.tolist() == [1, 2, 3, 4, 5, 6]
    for column in whole.columns:
        np.testing.assert_array_equal(cut[column], whole[column], err_msg=column)


def rows_of(tmp_path: pathlib.Path, name: str, make) -> tuple[Any, Any, torch.optim.Optimizer]:
    """A model trained four steps by an optimizer, and its trace."""
    model = tiny_llama()
    optimizer = make(model.parameters())
    with sv.trace(model, optimizer, tmp_path / name, every=1) as tracer:
        loop(model, [optimizer], tracer)
        assert tracer.gauge_faults == []
    return sv.open_trace(tmp_path / name), model, optimizer


def test_adam_is_adamw_but_for_its_decay(tmp_path: pathlib.Path) -> None:
    """torch.optim.Adam adds decay to the gradient and divides the sum: no coefficient says how fast it pulls."""
    adamw, _, _ = rows_of(tmp_path, "w.h5", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0))
    adam, _, _ = rows_of(tmp_path, "a.h5", lambda p: torch.optim.Adam(p, lr=0.01))
    for column in adamw.columns:
        np.testing.assert_array_equal(adam[column], adamw[column], err_msg=column)
    coupled, _, _ = rows_of(tmp_path, "c.h5", lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1))
    assert not np.array_equal(coupled["effective"], adam["effective"])
    for column in ("decay_horizon", "wd_balance", "rotation_ratio"):
        assert np.isnan(coupled[column]).all(), column
    np.testing.assert_allclose(
        coupled["elr", "final_norm"][1:], 0.01 * np.abs(coupled["effective", "final_norm"][:-1]), 1e-6
    )
    decoupled, _, _ = rows_of(
        tmp_path, "d.h5", lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True)
    )
    np.testing.assert_allclose(decoupled["decay_horizon", "final_norm"], 0.001 * np.arange(1, 5), rtol=1e-12)


def test_the_largest_second_moment_counts_under_amsgrad(tmp_path: pathlib.Path) -> None:
    trace, model, optimizer = rows_of(
        tmp_path, "m.h5", lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.5, 0.5), weight_decay=0.0, amsgrad=True)
    )
    state = optimizer.state[model.lm_head.weight]
    assert (state["max_exp_avg_sq"] > state["exp_avg_sq"]).any()
    inverse = (1 / ((state["max_exp_avg_sq"].double() / (1 - 0.5**4)).sqrt() + 1e-8)).mean(0).numpy()
    g = trace["effective", "final_norm"][2].astype(np.float64)
    np.testing.assert_allclose(trace["elr_state", "final_norm"][3], 0.01 * g * g * inverse, rtol=1e-5)


@pytest.mark.parametrize("more", [{}, {"dampening": 0.5}, {"nesterov": True}])
def test_momentum_multiplies_the_rate_of_sgd_and_of_its_decay(tmp_path: pathlib.Path, more: dict[str, Any]) -> None:
    """What a constant gradient moves in a step, in the long run: measured here on the optimizer itself."""
    options = {"lr": 0.01, "momentum": 0.75, "weight_decay": 0.1, **more}
    one = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([one], **{**options, "weight_decay": 0.0})
    for _ in range(200):
        before = one.item()
        one.grad = torch.ones_like(one)
        optimizer.step()
    moved = before - one.item()
    trace, _, _ = rows_of(tmp_path, "s.h5", lambda p: torch.optim.SGD(p, **options))
    g = trace["effective", "final_norm"].astype(np.float64)
    np.testing.assert_allclose(trace["elr", "final_norm"][1:], moved * g[:-1] ** 2, rtol=1e-6)
    np.testing.assert_allclose(trace["decay_horizon", "final_norm"], moved * 0.1 * np.arange(1, 5), rtol=1e-9)


def test_a_loss_that_is_maximised_leaves_every_identity_as_it_is(tmp_path: pathlib.Path) -> None:
    trace, _, _ = rows_of(tmp_path, "up.h5", lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1, maximize=True))
    parts = trace["balance_decay", "final_norm"] + trace["balance_step", "final_norm"]
    np.testing.assert_allclose(parts, trace["balance_change", "final_norm"], rtol=1e-3, atol=1e-8)


def test_a_path_that_is_taken_is_refused_and_left_as_it_is(tmp_path: pathlib.Path) -> None:
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        loop(model, [optimizer], tracer, steps=1)
        with pytest.raises(sv.Error, match=r"E_(PATH|STATE|IO)"):  # it grows
            sv.trace(model, optimizer, tmp_path / "run.h5")
    before = (tmp_path / "run.h5").read_bytes()
    for name in ("run.h5", "other.h5"):
        (tmp_path / "other.h5").write_bytes(b"notes")
        with pytest.raises(OSError, match="E_PATH"):
            sv.trace(model, optimizer, tmp_path / name)
    assert (tmp_path / "run.h5").read_bytes() == before and (tmp_path / "other.h5").read_bytes() == b"notes"


def test_an_adamw_of_ones_own_decays_as_its_name_says(tmp_path: pathlib.Path) -> None:
    class AdamW(torch.optim.SGD):  # what sv.trace goes by is the name, where groups do not say
        pass

    model = tiny_llama()
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for group in optimizer.param_groups:
        group |= {"betas": (0.9, 0.95), "eps": 1e-8}
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        loop(model, [optimizer], tracer)
    horizon = sv.open_trace(tmp_path / "run.h5")["decay_horizon", "final_norm"]
    np.testing.assert_allclose(horizon, 0.001 * np.arange(1, 5), rtol=1e-12)


@pytest.mark.parametrize("branches", [("q", "q"), ("a.b", "a_b"), ("", "v")])
def test_readers_that_would_share_columns_are_refused(tmp_path: pathlib.Path, branches: tuple[str, str]) -> None:
    vector = sv._scalevec.TracedVector(
        address="final_norm", native="n", role="final", offset=0.0, eps=1e-6, stored=torch.ones(4),
        consumers=[(branch, torch.ones(3, 4)) for branch in branches],
    )  # fmt: skip
    with pytest.raises(ValueError, match="E_DUP"):
        sv._scalevec.Tracer(
            tmp_path / "a.h5", [vector], command="", every=1, gauge_tolerance=0.0, inputs=False, curvature=False, after=None
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
