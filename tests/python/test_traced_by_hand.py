"""Columns of the trace of vectors that are not one, each of its own value, against their slow references."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import scalevec
import torch
import traced_course as courses
import traced_reference as slow
from scalevec import _scalevec as core
from tiny_training import MIXTURE, Recorded, effective, experiment, exponential, magnitude_direction, named
from traced_reference import maps_of, stacked


@pytest.mark.parametrize(
    ("strategy", "rule", "model"),
    [
        ("gemma", "sgd", ""), ("unified", "muon", ""), ("hg+dnp+er", "adamw", ""), ("ap", "adamw", ""),
        ("gemma", "adamw", MIXTURE), ("unified", "muon", MIXTURE),
    ],
    ids=named,
)  # fmt: skip
def test_columns_of_vectors_set_by_hand(tmp_path: pathlib.Path, strategy: str, rule: str, model: str) -> None:
    """Input vectors, whole and by branch, output scales and norms, plain, OR and ER, moved by our own optimizers."""
    text = experiment(strategy=strategy, rule=rule, every=1, steps=3, model=model).toml()
    for old, new in (
        ("rates = {}", f"rates = {{ linear = {5.0 if model else 0.5} }}"),
        ("\ninner = 0", "\ninner = 20"),
        ("eps = 0.0\n", "eps = 0.05\n"),  # what norms leave of the identities behind them is more than rounding
        ("learning_rate = 0.01", f"learning_rate = {0.001 if rule == 'adamw' else 0.01}"),
    ):
        assert old in text
        text = text.replace(old, new)
    training = core.Training(core.Experiment.parse(text))
    random = torch.Generator().manual_seed(4)
    for slot, t in training.tensors.items():
        if "/" in slot or slot == "embed.weight":
            continue
        if slot.endswith(".alpha") and strategy.endswith("er"):
            t.copy_(torch.randn(t.shape, generator=random))
            t[1] = -8.5  # with the others' mean, some 2e-4
        elif "norm" in slot or "scale" in slot:
            t.fill_(0.7) if len(t) == 1 else courses.set_by_hand(t, random)
        else:
            t.mul_(5)
    run = Recorded(training, tmp_path / "run")
    course = courses.Course(
        scalevec.open_trace(tmp_path / "run/trace.h5"), run.states, run.gradients,
        exponential if strategy.endswith("er") else magnitude_direction, {},
        67 * 2**-24,  # 64 of a sum in float32, two of a difference and its product, one of a sum of sums
    )  # fmt: skip
    found: courses.Found = {}
    normalised = 0
    for address in (site.address for site in course.trace.sites):
        for row in range(3):
            courses.hold(course, row, course.figures(address, row), found)
            names, by_row = slow.beside(address, run.states[0])
            if not by_row or address.endswith("output_scale") or not names:
                continue
            (name,) = names
            group, w = run.group_of[name], run.states[row][name].double().numpy()
            w1, dw = (t[name].double().numpy() for t in (run.states[row + 1], run.gradients[row]))
            rate = run.rates[row] * group["rate"]
            courses.hold(
                course, row, slow.of_groups(address, w, w1, dw, 8, rate, group["rule"], course.rounding), found
            )
            normalised += 1
    if strategy == "hg+dnp+er":
        assert not any(value for rows in found.pop("negative").values() for value, _ in rows)
    courses.assert_an_error_would_show(found)
    compared = slow.columns_of(found)
    assert compared >= slow.OF_HAND - slow.OF_NORMS - slow.OF_BRANCHES - {
        "negative",
        "gauge_residual",
        "length_residual",
    }
    assert (normalised > 0) == (compared >= slow.OF_NORMS) == (strategy != "ap")
    assert ("length_residual" in compared) == (strategy in ("unified", "hg+dnp+er"))
    assert (compared >= slow.OF_BRANCHES) == (strategy == "gemma" or bool(model))
    if model:
        branches = (
            {"gate", "up", "router", "experts_gate", "experts_up"} if strategy == "gemma" else {"gate", "experts_gate"}
        )
        of_mlp = "layers.1.mlp.input_norm" + ("[gate]" if strategy == "unified" else "")
        assert {name for name in found if name.startswith("weight_norm_") and of_mlp in found[name]} == {
            f"weight_norm_{branch}" for branch in branches
        }
        left = {"gauge_residual", "length_residual"} | slow.OF_NORMS
        assert courses.columns_at(found, of_mlp) == slow.OF_HAND - left


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_columns_of_a_loop_in_float64(tmp_path: pathlib.Path, rule: str) -> None:
    """To the rounding of what is stored; also of a gauge residual that is more than rounding."""

    def loss(tensors, offsets, x):
        total = 0.01 * tensors["final_norm.weight"].square().sum()
        for address, offset in offsets.items():
            scaled = x * (offset + tensors[address + ".weight"])
            total = total + sum((torch.tanh(scaled @ tensors[n].T) - 0.5).square().sum() for n in maps_of(address)) / 40
        return total

    course, faults = courses.loop_in_float64(tmp_path / "run.h5", rule, loss)
    assert [fault[:2] for fault in faults] == [("final_norm", 1)]
    found: courses.Found = {}
    for address in course.offsets:
        for row in range(4):
            courses.hold(course, row, course.figures(address, row), found)
            before, gradient = course.states[row], course.gradients[row]
            w, dw = (stacked(t, maps_of(address), False) for t in (before, gradient))
            product = course.vector(row, address) * gradient[address + ".weight"].numpy()
            courses.hold(course, row, slow.of_gauge(address, product, w, dw), found if address == "final_norm" else {})
    courses.assert_an_error_would_show(found)
    assert slow.columns_of(found) == slow.OF_HAND - slow.OF_NORMS - {"length_residual"}


def test_decay_takes_a_vector_where_the_trace_says(tmp_path: pathlib.Path) -> None:
    """Without gradients the vectors of a loop go there; those of components do by the mean of their logarithms."""
    course, _ = courses.loop_in_float64(
        tmp_path / "run.h5", "sgd", lambda tensors, *_: 0 * sum(t.sum() for t in tensors.values()), 40, decay=1250
    )
    for address, offset in course.offsets.items():
        left = course.vector(-1, address)
        assert np.abs(course.vector(0, address) - offset).max() > 1
        # Every step leaves a half: 40 of them 1e-12.
        assert np.all(np.abs(course.trace["decay_target", address][:, None] - left) < 1e-11)
    targets = {}
    for strategy, compose in {"hg+dp+or": magnitude_direction, "hg+dnp+er": exponential}.items():
        training = core.Training(experiment(strategy=strategy, every=1, steps=1))
        for slot, t in training.tensors.items():
            if slot.endswith(".alpha"):
                t.normal_(generator=torch.Generator().manual_seed(7))
        core.run_training(training, tmp_path / strategy, resume=False, command="t", on_step=lambda _: None)
        trace = scalevec.open_trace(tmp_path / strategy / "trace.h5")
        decay_of = {slot: group["weight_decay"] for group in training.groups for slot in group["slots"]}
        for address in (site.address for site in trace.sites):
            alpha = training.tensors[address + ".alpha"].double()
            assert decay_of[address + ".alpha"] == 0 and decay_of["final_norm.beta"] > 0
            g = compose(alpha, torch.zeros(1, dtype=torch.float64)).abs()
            assert effective(training.tensors, address, compose).std() > 0.3
            assert trace["decay_target", address][0] == pytest.approx(float(g.log().mean().exp()), abs=1e-12)
            targets[strategy] = trace["decay_target", address][0]
    assert targets == {"hg+dp+or": 0.0, "hg+dnp+er": 1.0}
