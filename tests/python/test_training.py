"""Training: one step of each rule against torch.optim, runs that stop and go on, traces against slow formulas."""

from __future__ import annotations

import math
import pathlib
import re

import h5py
import numpy as np
import pytest
import torch

from scalevec import _scalevec as core

TINY = """
[model]
preset = "nano"
width = 32
layers = 2
head_dim = 8
strategy = "{strategy}"
[data]
vocabulary = 37
context = 16
batch = 4
[optimizer]
rule = "{rule}"
learning_rate = 0.01
clip = 0.0
{optimizer}
[schedule]
warmup = 2
[train]
steps = {steps}
validate_every = 3
[trace]
every = {every}
"""


def experiment(strategy: str = "hg+dp+or", rule: str = "adamw", optimizer: str = "", steps: int = 6, every: int = 0):
    return core.Experiment.parse(
        TINY.format(strategy=strategy, rule=rule, optimizer=optimizer, steps=steps, every=every)
    )


def masters(training) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in training.tensors.items() if "/" not in name}


def optimizer_for(group: dict, tensors: list[torch.Tensor], rate: float) -> torch.optim.Optimizer:
    decay = group["weight_decay"]
    if group["rule"] == "adamw":
        return torch.optim.AdamW(tensors, lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    if group["rule"] == "sgd":
        return torch.optim.SGD(tensors, lr=rate, momentum=0.9, weight_decay=decay)
    return torch.optim.Muon(
        tensors, lr=rate, weight_decay=decay, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )


@pytest.mark.parametrize("rule", ["adamw", "sgd", "muon"])
def test_steps_are_those_of_torch_optim(rule: str) -> None:
    training = core.Training(experiment(rule=rule))
    ours = masters(training)
    theirs = {name: t.clone().requires_grad_() for name, t in ours.items()}
    optimizers = [
        (group, optimizer_for(group, [theirs[slot] for slot in group["slots"]], 0.01)) for group in training.groups
    ]
    assert {g["rule"] for g, _ in optimizers} == ({"muon", "adamw"} if rule == "muon" else {rule})
    for step in range(4):
        event = training.advance()
        share = min(1.0, (step + 1) / 2)
        if step >= 2:
            share = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 3))
        assert event["learning_rate"] == pytest.approx(0.01 * share, rel=1e-12)
        for slot, gradient in training.gradients.items():
            theirs[slot].grad = gradient.clone()
        before = {slot: t.detach().clone() for slot, t in theirs.items()}
        for _, optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = event["learning_rate"]
            optimizer.step()
        now = masters(training)
        for group, _ in optimizers:
            # torch iterates in bfloat16, of 2^-9, which five steps spread over small singular values: a check of
            # state, scale and decay. The iteration itself is checked below.
            tolerance = 0.15 if group["rule"] == "muon" else 2e-6
            for slot in group["slots"]:
                moved = (theirs[slot].detach() - before[slot]).norm()
                assert (now[slot] - theirs[slot].detach()).norm() <= tolerance * moved + 1e-9, slot
                assert moved > 0 or group["weight_decay"] == 0 or "beta" in slot, slot
                with torch.no_grad():
                    theirs[slot].copy_(now[slot])


def test_muon_is_its_definition() -> None:
    training = core.Training(experiment(strategy="standard", rule="muon", optimizer="weight_decay = 0.0\n"))
    slot = "layers.0.mlp.up.weight"
    before = masters(training)[slot].double()
    event = training.advance()
    g = training.gradients[slot].double()
    x = g * (1 - 0.95) + 0.95 * (1 - 0.95) * g  # (1 - m) g + m b, b = (1 - m) g in the first step
    x = x.T / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    expected = before - event["learning_rate"] * 0.2 * math.sqrt(max(g.shape)) * x.T
    moved = masters(training)[slot].double()
    assert (moved - expected).norm() <= 1e-4 * (expected - before).norm()
    singular = torch.linalg.svdvals(x)
    assert 0.3 < singular.min() and singular.max() < 1.3


def test_run_writes_a_log_and_goes_on_to_the_same_bits(tmp_path: pathlib.Path) -> None:
    whole = core.Training(experiment(every=2))
    result = core.run_training(whole, tmp_path / "whole", resume=False, command="test", on_step=lambda e: False)
    assert result["finished"] and result["log_error"] == ""
    assert (tmp_path / "whole/model/config.json").exists()

    stopped = core.Training(experiment(every=2))
    cut = core.run_training(stopped, tmp_path / "cut", resume=False, command="t", on_step=lambda e: e["step"] == 3)
    assert not cut["finished"] and cut["steps"] == 3 and not (tmp_path / "cut/model").exists()
    again = core.Training(experiment(every=2))
    done = core.run_training(again, tmp_path / "cut", resume=True, command="t", on_step=lambda e: False)
    assert done["finished"] and done["validation_loss"] == result["validation_loss"]
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name
    for file in ("log.h5", "trace.h5"):
        with h5py.File(tmp_path / "whole" / file) as a, h5py.File(tmp_path / "cut" / file) as b:
            names = [n for n in a["trace"] if isinstance(a["trace"][n], h5py.Dataset)]
            assert len(names) > 5
            for name in names:
                if name != "tokens_per_second":
                    np.testing.assert_array_equal(a["trace"][name][()], b["trace"][name][()], err_msg=name)
    with h5py.File(tmp_path / "whole/log.h5") as log:
        assert log["trace/step"][()].tolist() == [1, 2, 3, 4, 5, 6]
        validated = np.isfinite(log["trace/validation_loss"][()]).ravel().tolist()
        assert validated == [False, False, True, False, False, True]

    with pytest.raises(ValueError, match="nothing|another|differ|E_CONFIG"):
        core.run_training(
            core.Training(experiment(rule="sgd")), tmp_path / "cut", resume=True, command="t", on_step=lambda e: False
        )
    with pytest.raises(OSError, match="E_PATH"):
        core.run_training(core.Training(experiment()), tmp_path / "cut", resume=False, command="t", on_step=bool)


@pytest.mark.parametrize("rule", ["adamw", "sgd", "muon"])
def test_tracing_changes_no_bit(tmp_path: pathlib.Path, rule: str) -> None:
    plain, traced = core.Training(experiment(rule=rule)), core.Training(experiment(rule=rule, every=1))
    for training, name in ((plain, "plain"), (traced, "traced")):
        core.run_training(training, tmp_path / name, resume=False, command="t", on_step=lambda e: False)
    for name, tensor in plain.tensors.items():
        assert torch.equal(tensor, traced.tensors[name]), name


# --- the trace against formulas in NumPy, float64, from the tensors before and after each step ---


def effective(tensors: dict[str, torch.Tensor], address: str) -> np.ndarray:
    if address + ".weight" in tensors:
        return tensors[address + ".weight"].double().numpy()
    alpha, beta = tensors[address + ".alpha"].double().numpy(), tensors[address + ".beta"].double().numpy()
    return beta * alpha / np.sqrt(np.mean(alpha**2))


def gradient_by_autograd(before, gradients, address: str) -> np.ndarray:
    """dL/dg as the least-squares answer of J^T dL/dg = (dL/dalpha, dL/dbeta), J by autograd."""
    if address + ".weight" in before:
        return gradients[address + ".weight"].double().numpy()
    alpha, beta = before[address + ".alpha"].double(), before[address + ".beta"].double()
    jacobian = torch.autograd.functional.jacobian(lambda a, b: b * a / a.square().mean().sqrt(), (alpha, beta))
    rows = torch.cat([jacobian[0], jacobian[1]], dim=1).T.numpy()
    right = torch.cat([gradients[address + ".alpha"], gradients[address + ".beta"]]).double().numpy()
    return np.linalg.lstsq(rows, right, rcond=None)[0]


def maps_of(address: str) -> list[str]:
    part, _, name = address.rpartition(".")
    if address == "final_norm":
        return ["head.weight"]
    if name.startswith("input_norm"):
        branches = re.findall(r"\[(\w+)\]", name) or (["q", "k", "v"] if part.endswith("attn") else ["gate", "up"])
        return [f"{part}.{branch}.weight" for branch in branches]
    if part == "lm_head":
        return ["head.weight"]
    return [part + ".weight"]  # layers.0.attn.q.output_scale


def record(tmp_path: pathlib.Path, **options):
    training = core.Training(experiment(every=1, **options))
    states, gradients = [masters(training)], []

    def on_step(event) -> bool:
        states.append(masters(training))
        gradients.append({slot: g.clone() for slot, g in training.gradients.items()})
        return False

    events = core.run_training(training, tmp_path / "run", resume=False, command="t", on_step=on_step)
    assert events["gauge_faults"] == []
    return training, states, gradients


@pytest.mark.parametrize("strategy", ["standard", "hg+dp+or", "gemma", "ap"])
@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_trace_is_what_the_formulas_say(tmp_path: pathlib.Path, strategy: str, rule: str) -> None:
    momentum = "momentum = 0.0\n" if rule == "sgd" else ""
    training, states, gradients = record(tmp_path, strategy=strategy, rule=rule, optimizer=momentum)
    group_of = {slot: g for g in training.groups for slot in g["slots"]}
    with h5py.File(tmp_path / "run/trace.h5") as file, h5py.File(tmp_path / "run/log.h5") as log:
        trace = {name: d[()] for name, d in file["trace"].items() if isinstance(d, h5py.Dataset)}
        addresses = [a.decode() if isinstance(a, bytes) else a for a in file["sites/address"][()]]
        starts, widths = file["sites/start"][()], file["sites/width"][()]
        rates = log["trace/learning_rate"][()].ravel()
    assert len(trace["step"]) == 6
    checked = 0
    for i, address in enumerate(addresses):
        span = slice(int(starts[i]), int(starts[i] + widths[i]))
        history = [effective(s, address) for s in states]
        scaled = "norm" not in address
        for row in range(6):
            before, after, gradient = states[row], states[row + 1], gradients[row]
            g0, g = history[row], history[row + 1]
            column = lambda name: trace[name][row, span]  # noqa: E731
            site = lambda name: trace[name][row, i]  # noqa: E731
            np.testing.assert_allclose(column("effective"), g, rtol=1e-6)
            assert site("mean") == pytest.approx(g.mean(), rel=1e-9)
            assert site("magnitude") == pytest.approx(np.sqrt(np.mean(g**2)), rel=1e-9)
            assert site("participation") == pytest.approx(np.sum(g**2) ** 2 / (len(g) * np.sum(g**4)), rel=1e-9)
            pairs = np.abs(np.abs(g)[:, None] - np.abs(g)[None, :])
            assert site("gini") == pytest.approx(pairs.mean() / (2 * np.abs(g).mean()), rel=1e-6, abs=1e-12)
            if row:
                unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
                chord = np.linalg.norm(unit(g) - unit(g0))
                assert site("rotation") == pytest.approx(2 * np.arcsin(chord / 2), rel=1e-6, abs=1e-12)
            head = address.startswith("layers") and address.split(".")[2] in ("attn", "mlp")
            output_norm = address.endswith(("_norm",)) and "input" not in address and address != "final_norm"
            if output_norm or (not head and address != "final_norm" and not address.startswith("lm_head")):
                continue
            names = maps_of(address)
            turn = (lambda w: w.double().numpy().T) if scaled else (lambda w: w.double().numpy())
            w = np.concatenate([turn(before[n]) for n in names])
            w1 = np.concatenate([turn(after[n]) for n in names])
            dw = np.concatenate([turn(gradient[n]) for n in names])
            dg = gradient_by_autograd(before, gradient, address)
            n0, n1 = np.sum(w**2, 0), np.sum(w1**2, 0)
            np.testing.assert_allclose(column("column_norm"), np.sqrt(n1), rtol=1e-6)
            np.testing.assert_allclose(column("precond_radial"), g**2 + n1, rtol=1e-6)
            np.testing.assert_allclose(column("balance"), g**2 - n1, rtol=1e-5, atol=1e-6)
            assert site("precond_gain") == pytest.approx(
                (w.shape[0] * np.sum(g**2) + n1.sum()) / (w.shape[0] * len(g)), rel=1e-6
            )
            residual = np.abs(g0 * dg - np.sum(w * dw, 0)) / np.sum(np.abs(w * dw), 0)
            # Both are round-off of float32 gradients: they agree in size, and a fault is 1, not 1e-5.
            assert np.all(residual < 1e-5) and np.all(column("gauge_residual") < 1e-5)
            np.testing.assert_allclose(column("saliency"), np.abs(g0 * dg), rtol=1e-4, atol=1e-9)
            d_effective = g * w1 - g0 * w
            np.testing.assert_allclose(
                column("rel_update"), np.linalg.norm(d_effective, axis=0) / np.linalg.norm(g0 * w, axis=0), rtol=2e-3
            )
            by_map, by_vector = np.abs(g0) * np.linalg.norm(w1 - w, axis=0), np.abs(g - g0) * np.sqrt(n0)
            np.testing.assert_allclose(column("channel_share"), by_map / (by_map + by_vector), rtol=1e-3)
            effective_gradient = dw / g0
            r = (np.sum(dw**2) + np.sum(dg**2)) / np.sum(effective_gradient**2)
            assert site("amplification") == pytest.approx(r, rel=1e-5)
            assert site("log_pearson") == pytest.approx(
                np.corrcoef(np.log(np.abs(g)), np.log(np.sqrt(n1)))[0, 1], rel=1e-4, abs=1e-6
            )
            eta = rates[row]
            vector_slot = next(s for s in before if s.startswith(address + "."))
            decay, mu = group_of[names[0]]["weight_decay"], group_of[vector_slot]["weight_decay"]
            expected = eta * g0**2 if rule == "sgd" else eta * np.abs(g0)
            np.testing.assert_allclose(column("elr"), expected, rtol=1e-6)
            if rule == "sgd" and not vector_slot.endswith(".alpha"):
                change = (g**2 - n1) - (g0**2 - n0)
                predicted = column("balance_decay") + column("balance_step")
                # float32 stores w and g: each square moves by its rounding, 2^-24 of |w| and g each.
                rounding = 2**-23 * (g0**2 + np.sum(np.abs(w) * np.abs(w), 0)) + 1e-12
                assert np.all(np.abs(predicted - change) <= 4 * rounding + 1e-5 * np.abs(change))
                assert np.all(np.abs(change) > 0)
                np.testing.assert_allclose(
                    column("balance_decay"), 2 * eta * (decay * n0 - mu * g0**2), rtol=1e-5, atol=1e-12
                )
            checked += 1
    assert checked > 12


def test_a_missing_reader_or_offset_shows_in_the_gauge_residual(tmp_path: pathlib.Path) -> None:
    """The check can fail: the residual of a vector with one of its readers left out is of order 1."""
    _, states, gradients = record(tmp_path, strategy="standard")
    address = "layers.0.attn.input_norm"
    g, dg = states[0][address + ".weight"].double().numpy(), gradients[0][address + ".weight"].double().numpy()
    for names in (["q", "k"], ["q"]):
        w = np.concatenate([states[0][f"layers.0.attn.{n}.weight"].double().numpy() for n in names])
        dw = np.concatenate([gradients[0][f"layers.0.attn.{n}.weight"].double().numpy() for n in names])
        residual = np.abs(g * dg - np.sum(w * dw, 0)) / np.sum(np.abs(w * dw), 0)
        assert np.median(residual) > 1e-2
