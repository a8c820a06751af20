"""Training: one step of each rule against torch.optim, runs that stop and go on, traces against slow formulas."""

from __future__ import annotations

import math
import pathlib
import re
import subprocess
import sys

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
    assert singular.min() > 0.3 and singular.max() < 1.3


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
            names = {n for n in a["trace"] if isinstance(a["trace"][n], h5py.Dataset)}
            assert len(names) > 5
            for name in names - {"header", "tokens_per_second"}:
                np.testing.assert_array_equal(a["trace"][name][()], b["trace"][name][()], err_msg=name)
    with h5py.File(tmp_path / "whole/log.h5") as log:
        assert log["trace/step"][()].tolist() == [1, 2, 3, 4, 5, 6]
        validated = np.isfinite(log["trace/validation_loss"][()]).ravel().tolist()
        assert validated == [False, False, True, False, False, True]

    with pytest.raises(ValueError, match="E_CONFIG"):
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


def stacked(tensors: dict[str, torch.Tensor], names: list[str], by_row: bool) -> np.ndarray:
    """The maps beside a vector, one column for each of its channels."""
    maps = [tensors[name].double().numpy() for name in names]
    return np.concatenate([w.T if by_row else w for w in maps])


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

            def column(name, row=row, span=span):
                return trace[name][row, span]

            def site(name, row=row, i=i):
                return trace[name][row, i]

            np.testing.assert_allclose(column("effective"), g, rtol=1e-6)
            assert site("mean") == pytest.approx(g.mean(), rel=1e-9)
            assert site("magnitude") == pytest.approx(np.sqrt(np.mean(g**2)), rel=1e-9)
            assert site("participation") == pytest.approx(np.sum(g**2) ** 2 / (len(g) * np.sum(g**4)), rel=1e-9)
            pairs = np.abs(np.abs(g)[:, None] - np.abs(g)[None, :])
            assert site("gini") == pytest.approx(pairs.mean() / (2 * np.abs(g).mean()), rel=1e-6, abs=1e-12)
            if row:
                chord = np.linalg.norm(g / np.linalg.norm(g) - g0 / np.linalg.norm(g0))
                assert site("rotation") == pytest.approx(2 * np.arcsin(chord / 2), rel=1e-6, abs=1e-12)
            head = address.startswith("layers") and address.split(".")[2] in ("attn", "mlp")
            output_norm = address.endswith(("_norm",)) and "input" not in address and address != "final_norm"
            if output_norm or (not head and address != "final_norm" and not address.startswith("lm_head")):
                continue
            names = maps_of(address)
            w, w1, dw = (stacked(tensors, names, scaled) for tensors in (before, after, gradient))
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
                column("rel_update"), np.linalg.norm(d_effective, axis=0) / np.linalg.norm(g0 * w, axis=0), rtol=1e-4
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


# --- the same tracer in a PyTorch loop ---


def tiny_llama(seed: int = 0):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def loop(model, optimizers, tracer=None, steps: int = 4, clear_first: bool = False) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(0, 41, (3, 12), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if clear_first:
            model.zero_grad(set_to_none=False)
        if tracer is not None:
            tracer.step()
        model.zero_grad()


def optimizers_of(model, rule: str) -> list[torch.optim.Optimizer]:
    if rule == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)]
    if rule == "sgd":
        return [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.0, weight_decay=0.1)]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.01),
    ]


@pytest.mark.parametrize("rule", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("clear_first", [False, True])
def test_a_pytorch_loop_is_traced_and_not_changed(tmp_path: pathlib.Path, rule: str, clear_first: bool) -> None:
    import scalevec as sv

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
    import scalevec as sv

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


def test_a_forgotten_reader_is_named(tmp_path: pathlib.Path) -> None:
    """A gradient that a wrong reduction doubled is what the gauge identity is for."""
    import scalevec as sv

    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.model.layers[1].input_layernorm.weight.register_hook(lambda g: 2 * g)
    with sv.trace(model, optimizer, tmp_path / "run.h5", every=1) as tracer:
        loop(model, [optimizer], tracer)
        assert [fault[0] for fault in tracer.gauge_faults] == ["layers.1.attn.input_norm"]


def test_misuse_of_the_tracer_is_told(tmp_path: pathlib.Path) -> None:
    import scalevec as sv

    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sv.trace(model, optimizer, tmp_path / "run.h5") as tracer, pytest.raises(RuntimeError, match="has not moved"):
        tracer.step()
    with pytest.raises(TypeError, match="LlamaForCausalLM"):
        sv.trace(torch.nn.Linear(2, 2), optimizer, tmp_path / "other.h5")
    with pytest.raises(TypeError, match="RMSprop"):
        sv.trace(model, torch.optim.RMSprop(model.parameters()), tmp_path / "third.h5")


def test_transformers_trainer_is_traced_by_a_callback(tmp_path: pathlib.Path) -> None:
    transformers = pytest.importorskip("transformers")
    import scalevec as sv

    class Ids(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int):
            ids = (torch.arange(10) * (i + 1)) % 41
            return {"input_ids": ids, "labels": ids}

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


# --- the command ---


def scalevec_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scalevec", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_the_command_trains_resumes_and_refuses(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(TINY.format(strategy="standard", rule="adamw", optimizer="", steps=6, every=2))
    done = scalevec_command("train", file, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout and "model" in done.stdout
    inspected = scalevec_command("inspect", tmp_path / "run/model", "--json")
    assert inspected.returncode == 0 and "layers.0.attn.input_norm" in inspected.stdout
    again = scalevec_command("train", file, "-o", tmp_path / "run")
    assert again.returncode == 1 and "E_PATH" in again.stderr
    assert scalevec_command("train", tmp_path / "none.toml", "-o", tmp_path / "x").returncode in (1, 2)
    file.write_text("[optimizer]\nlearningrate = 1\n")
    wrong = scalevec_command("train", file, "-o", tmp_path / "x")
    assert wrong.returncode == 1 and "optimizer.learning_rate" in wrong.stderr
    fields = scalevec_command("train", "--fields")
    assert fields.returncode == 0 and "optimizer.decay_vectors" in fields.stdout
