"""Training: one step of each rule against torch.optim, runs that stop and go on, the command."""

from __future__ import annotations

import math
import pathlib
import subprocess
import sys
from typing import Any

import h5py
import numpy as np
import pytest
import scalevec
import torch
from scalevec import _scalevec as core
from tiny_training import assert_same_rows, experiment, in_full, masters


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
                # AdamW is ours: two roundings of one value may fall apart, by a unit in its last place.
                ulp = 2**-23 * before[slot].norm() if group["rule"] == "adamw" else 1e-9
                assert (now[slot] - theirs[slot].detach()).norm() <= tolerance * moved + ulp, slot
                assert moved == 0 or ulp < 0.01 * moved or group["rule"] == "sgd"
                assert moved > 0 or group["weight_decay"] == 0 or "beta" in slot, slot
                with torch.no_grad():
                    theirs[slot].copy_(now[slot])


def test_muon_is_its_definition() -> None:
    """Three steps of momentum, Nesterov and decay, in float64."""
    training = core.Training(experiment(strategy="standard", rule="muon", optimizer="weight_decay = 0.3\n"))
    slot = "layers.0.mlp.up.weight"
    (group,) = (group for group in training.groups if slot in group["slots"])
    assert group["rule"] == "muon" and group["weight_decay"] == 0.3
    gathered = 0.0
    for _ in range(3):
        before = masters(training)[slot].double()
        rate = training.advance()["learning_rate"]
        g = training.gradients[slot].double()
        gathered = 0.95 * gathered + (1 - 0.95) * g
        x = ((1 - 0.95) * g + 0.95 * gathered).T
        x = x / x.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        expected = before * (1 - rate * 0.3) - rate * 0.2 * math.sqrt(max(g.shape)) * x.T
        moved = masters(training)[slot].double()
        assert (moved - expected).norm() <= 1e-4 * (expected - before).norm()
        singular = torch.linalg.svdvals(x)
        assert singular.min() > 0.3 and singular.max() < 1.3


def test_groups_of_the_unified_strategy_by_name() -> None:
    """Every slot of one layer, its group and its decay under IWD."""
    text = experiment(strategy="unified").toml().replace("layers = 2", "layers = 1")
    attn, mlp = "layers.0.attn.", "layers.0.mlp."
    read = [f"{attn}input_norm[{b}]" for b in "qkv"] + [f"{mlp}input_norm[gate]", f"{mlp}input_norm[up]"]
    scaled = [f"{attn}{m}.output_norm" for m in "qkv"] + [
        f"{mlp}gate.output_norm",
        f"{mlp}up.output_norm",
        "lm_head.output_norm",
    ]
    maps = [f"{attn}{m}.weight" for m in "qkvo"] + [f"{mlp}{m}.weight" for m in ("gate", "up", "down")]
    expected = {"embed.weight": ("embedding", 0.1), "head.weight": ("head", 0.1)}
    expected |= dict.fromkeys(maps, ("linear", 0.1))
    expected |= {f"{g}.alpha": ("input.alpha", 0.0) for g in read} | {f"{g}.beta": ("input.beta", 0.1) for g in read}
    expected |= {f"{g}.alpha": ("output.alpha", 0.0) for g in scaled} | {
        f"{g}.beta": ("output.beta", 0.0) for g in scaled
    }
    expected |= {"final_norm.alpha": ("final.alpha", 0.0), "final_norm.beta": ("final.beta", 0.1)}
    groups = core.Training(core.Experiment.parse(text)).groups
    assert {slot: (group["name"], group["weight_decay"]) for group in groups for slot in group["slots"]} == expected


@pytest.mark.parametrize("ends", ["in the last step", "before the last step"])
def test_a_run_that_left_the_finite_numbers_ends_without_model_or_checkpoint(tmp_path: pathlib.Path, ends: str) -> None:
    run = tmp_path / "run"
    text = experiment(steps=1 if ends == "in the last step" else 3, train="checkpoint_every = 1\n").toml()
    text = text.replace("learning_rate = 0.01", "learning_rate = 1e38").replace("warmup = 2", "warmup = 0")
    with pytest.raises(ValueError, match=r"after step 1: .*'embed.weight' is not finite in") as caught:
        scalevec.train(core.Experiment.parse(text), run)
    assert caught.value.code == "E_VALUE" and caught.value.tensor == "embed.weight"
    assert not (run / "model").exists() and not list(run.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("rule", "rate", "more"),
    [("sgd", "1e38", "rates = { linear = 10 }"), ("sgd", "1e38", "decay = { linear = 10 }"), ("muon", "3e38", "")],
)
def test_a_product_that_float32_cannot_hold_is_refused(rule: str, rate: str, more: str) -> None:
    text = experiment(strategy="standard", rule=rule, optimizer=more).toml().replace("rate = 0.01", f"rate = {rate}")
    with pytest.raises(ValueError, match=r"E_VALUE: optimizer: .* would multiply 'layers\.0\.\S+' by \S+; lower them"):
        core.Training(core.Experiment.parse(text))


@pytest.mark.parametrize("rule", ["adamw", "plain sgd"])
def test_run_writes_a_log_and_goes_on_to_the_same_bits(tmp_path: pathlib.Path, rule: str) -> None:
    def made(**options: Any) -> core.Training:
        plain = {"rule": "sgd", "optimizer": "momentum = 0.0", "strategy": "standard"} if rule == "plain sgd" else {}
        return core.Training(experiment(**plain, **options))

    whole = made(every=2)
    result = core.run_training(whole, tmp_path / "whole", resume=False, command="test", on_step=lambda e: False)
    assert result["finished"] and result["log_error"] == ""
    assert (tmp_path / "whole/model/config.json").exists()

    stopped = made(every=2)
    cut = core.run_training(stopped, tmp_path / "cut", resume=False, command="t", on_step=lambda e: e["step"] == 3)
    assert not cut["finished"] and cut["steps"] == 3 and not (tmp_path / "cut/model").exists()
    again = made(every=2)
    done = core.run_training(again, tmp_path / "cut", resume=True, command="t", on_step=lambda e: False)
    assert done["finished"] and done["validation_loss"] == result["validation_loss"]
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name
    for file in ("log.h5", "trace.h5"):
        assert_same_rows(tmp_path / "whole" / file, tmp_path / "cut" / file)
    with h5py.File(tmp_path / "whole/log.h5") as log:
        assert log["trace/step"][()].tolist() == [1, 2, 3, 4, 5, 6]
        validated = np.isfinite(log["trace/validation_loss"][()]).ravel().tolist()
        assert validated == [False, False, True, False, False, True]

    with pytest.raises(ValueError, match="E_CONFIG"):
        core.run_training(
            core.Training(experiment(rule="muon")), tmp_path / "cut", resume=True, command="t", on_step=lambda e: False
        )
    with pytest.raises(OSError, match="E_PATH"):
        core.run_training(core.Training(experiment()), tmp_path / "cut", resume=False, command="t", on_step=bool)


@pytest.mark.parametrize("rule", ["adamw", "sgd", "muon"])
def test_tracing_changes_no_bit(tmp_path: pathlib.Path, record_property, rule: str) -> None:
    steps = in_full(200, 6)
    record_property("steps", steps)
    plain, traced = (core.Training(experiment(rule=rule, steps=steps, every=every)) for every in (0, 1))
    for training, name in ((plain, "plain"), (traced, "traced")):
        core.run_training(training, tmp_path / name, resume=False, command="t", on_step=lambda e: False)
    for name, tensor in plain.tensors.items():
        assert torch.equal(tensor, traced.tensors[name]), name


def scalevec_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scalevec", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_the_command_trains_resumes_and_refuses(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(experiment(strategy="standard", every=2).toml())
    done = scalevec_command("train", file, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout and "model" in done.stdout
    inspected = scalevec_command("inspect", tmp_path / "run/model", "--json")
    assert inspected.returncode == 0 and "layers.0.attn.input_norm" in inspected.stdout
    quiet = scalevec_command("train", file, "-o", tmp_path / "quiet", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    again = scalevec_command("train", file, "-o", tmp_path / "run")
    assert again.returncode == 1 and "E_PATH" in again.stderr
    assert scalevec_command("train", tmp_path / "none.toml", "-o", tmp_path / "x").returncode in (1, 2)
    file.write_text("[optimizer]\nlearningrate = 1\n")
    wrong = scalevec_command("train", file, "-o", tmp_path / "x")
    assert wrong.returncode == 1 and "optimizer.learning_rate" in wrong.stderr
    fields = scalevec_command("train", "--fields")
    assert fields.returncode == 0 and "optimizer.decay_vectors" in fields.stdout
