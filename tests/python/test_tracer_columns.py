"""Columns of the trace against slow formulas in NumPy, float64, from the tensors before and after each step."""

from __future__ import annotations

import ast
import math
import pathlib

import h5py
import numpy as np
import pytest
import scalevec
import traced_reference as slow
from scalevec import _scalevec as core
from tiny_training import (
    MIXTURE,
    Recorded,
    effective,
    everything,
    experiment,
    exponential,
    magnitude_direction,
    named,
)
from traced_reference import Figures, angle, line, maps_of, ranks, stacked


def record(tmp_path: pathlib.Path, **options) -> Recorded:
    run = Recorded(core.Training(experiment(every=1, **options)), tmp_path / "run")
    assert run.ended["gauge_faults"] == []
    return run


@pytest.mark.parametrize(
    ("strategy", "model"),
    [("standard", ""), ("hg+dp+or", ""), ("gemma", ""), ("ap", ""), ("standard", MIXTURE), ("hg+dp+or", MIXTURE)],
    ids=named,
)
@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_trace_is_what_the_formulas_say(tmp_path: pathlib.Path, strategy: str, model: str, rule: str) -> None:
    momentum = "momentum = 0.0\n" if rule == "sgd" else ""
    run = record(tmp_path, strategy=strategy, rule=rule, optimizer=momentum, model=model)
    states, gradients, group_of = run.states, run.gradients, run.group_of
    with h5py.File(tmp_path / "run/trace.h5") as file, h5py.File(tmp_path / "run/log.h5") as log:
        trace = {name: d[()] for name, d in file["trace"].items() if isinstance(d, h5py.Dataset)}
        addresses = [a.decode() if isinstance(a, bytes) else a for a in file["sites/address"][()]]
        starts, widths = file["sites/start"][()], file["sites/width"][()]
        rates = log["trace/learning_rate"][()].ravel()
    assert len(trace["step"]) == 6
    checked, seen = 0, {}
    for i, address in enumerate(addresses):
        span = slice(int(starts[i]), int(starts[i] + widths[i]))
        history = [effective(s, address) for s in states]
        scaled = "norm" not in address
        for row in range(6):
            before, after, gradient = states[row], states[row + 1], gradients[row]
            g0, g = history[row], history[row + 1]

            here = seen.setdefault(address, set())

            def column(name, row=row, span=span, here=here):
                here.add(name)
                return trace[name][row, span]

            def site(name, row=row, i=i, here=here):
                here.add(name)
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
            names = maps_of(address, before)
            w, w1, dw = (stacked(tensors, names, scaled) for tensors in (before, after, gradient))
            dg, _ = slow.gradient_by_autograd(before, gradient, address)
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
            pearson, _ = line(slow.log(np.sqrt(n1)), slow.log(g))  # none of a vector that is as it began
            assert site("log_pearson") == pytest.approx(pearson, rel=1e-4, abs=1e-6, nan_ok=g.std() == 0)
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
                if row:
                    change = dw / g0 - stacked(gradients[row - 1], names, scaled) / history[row - 1]
                    noise = eta * np.mean(change**2) / 2
                    expected = (2 * decay + noise) / (2 * mu + len(w) * noise)
                    assert site("noise_balance") == pytest.approx(expected, rel=1e-6)
                np.testing.assert_allclose(
                    column("balance_decay"), 2 * eta * (decay * n0 - mu * g0**2), rtol=1e-5, atol=1e-12
                )
            checked += 1
    assert checked > 12
    everywhere = slow.OF_FORMULAS - (slow.OF_SGD if rule != "sgd" or strategy == "hg+dp+or" else set())
    assert set().union(*seen.values()) == everywhere
    if model:  # of the vector of the router, with all that have none of their own, and of the experts'
        for address in ("layers.1.mlp.input_norm", *(["layers.1.mlp.input_norm[gate]"] if "hg" in strategy else [])):
            assert seen[address] == everywhere


@pytest.mark.parametrize(
    ("strategy", "model"),
    [
        ("standard", ""), ("hg+dp+or", ""), ("gemma", ""), ("ap", ""), ("hg+dnp+er", ""),
        ("gemma", MIXTURE), ("hg+dnp+er", MIXTURE), ("standard", MIXTURE + "inner = 20\n"),
    ],
    ids=named,
)  # fmt: skip
@pytest.mark.parametrize("rule", ["adamw", "sgd", "muon"])
def test_columns_of_history_neighbours_and_state(tmp_path: pathlib.Path, strategy: str, model: str, rule: str) -> None:
    made = experiment(every=1, strategy=strategy, rule=rule, model=model)
    run = Recorded(core.Training(made), tmp_path / "run", everything)
    states, gradients, rates = run.states, run.gradients, run.rates
    trace = scalevec.open_trace(tmp_path / "run/trace.h5")
    addresses = [site.address for site in trace.sites]
    compose = exponential if strategy.endswith("er") else magnitude_direction
    seen: set[str] = set()
    peaks: dict[str, set[int]] = {}
    vectors = [{a: effective(s, a, compose) for a in addresses} for s in states]

    def rule_of(slot: str) -> str:
        return run.group_of[slot]["rule"]

    def decay_of(slot: str) -> float:
        return run.group_of[slot]["weight_decay"]

    def figures_of_maps(address: str, row: int) -> Figures:
        eta, before, after = rates[row], states[row], states[row + 1]
        stored = next(s for s in (".beta", ".weight") if address + s in before)
        mu = decay_of(address + stored)
        gathers = 1 - 0.9 if rule_of(address + stored) == "sgd" else 1  # decay in the momentum
        yield "decay_horizon", address, sum(rates[: row + 1]) * mu / gathers, 1e-12
        reads = "input_norm" in address or address == "final_norm"
        names, _ = slow.beside(address, before)
        if not names:  # behind a mixture
            assert all(np.isnan(trace[name, address][row]) for name in ("weight_norm", "scale_inv_residual"))
            return
        for name, alone in (("", names), *((f"_{slow.branch_of(n)}", [n]) for n in names if len(names) > 1 and reads)):
            norms = [sum(float(s[n].double().square().sum()) for n in alone) for s in states[: row + 2]]
            peaks.setdefault(f"weight_peak{name}", set()).add(int(np.argmax(norms)))
            yield f"weight_peak{name}", address, int(np.argmax(norms)), 0
        pairs = [(before[n].double().numpy(), after[n].double().numpy()) for n in names]
        decay = decay_of(names[0])
        if decay:
            turned = math.sqrt(np.mean([angle(*pair) ** 2 for pair in pairs]))
            smoothed = (1 - 0.9) / (1 + 0.9) if rule_of(names[0]) == "adamw" else 1
            yield "rotation_ratio", address, turned / math.sqrt(2 * eta * decay * smoothed), 1e-4
        if (address.endswith("_norm") and not reads) or ".output_norm" in address:
            group = 8 if address.split(".")[-2] in "qkv" or address[-6:] in ("q_norm", "k_norm") else None
            w, dw = pairs[0][0], gradients[row][names[0]].double().numpy()
            w, dw = (t.reshape(-1, (group or len(t)) * t.shape[1]) for t in (w, dw))
            residual = np.abs(np.sum(w * dw, 1)) / (np.linalg.norm(w, axis=1) * np.linalg.norm(dw, axis=1))
            yield "scale_inv_residual", address, residual.max(), 1e-5
            return
        g0, g = vectors[row][address], vectors[row + 1][address]
        n0, n = (np.sqrt(np.sum(stacked(s, names, not reads) ** 2, 0)) for s in (before, after))
        if compose is not exponential or address + ".weight" in before:
            with np.errstate(divide="ignore"):
                yield "wd_balance", address, decay * np.sum(n**2) / (mu * np.sum(g**2)), 1e-5
        else:  # decay takes it to 1: no balance with maps that go to 0
            yield "wd_balance", address, math.nan, 0
        yield "growth_prediction", address, np.mean(n**2 / g**2), 1e-5
        yield "log_spearman", address, line(ranks(slow.log(n)), ranks(slow.log(g)))[0], 1e-9
        if row:
            grown = line(slow.log(n) - slow.log(n0), slow.log(g) - slow.log(g0))
            # N is known to 67 roundings of float32, 4e-6, beside what its growth varies by.
            noise = 1e-6 + 4e-6 / np.std(slow.log(n) - slow.log(n0))
            yield "growth_correlation", address, grown[0], noise
            yield "growth_slope", address, grown[1], noise
            yield "self_amplification", address, line(slow.log(g0), slow.log(g) - slow.log(g0))[1], 1e-6
        # The update of a unit that a rule makes: of two sizes under Muon there is no rate in common.
        stretches = {math.sqrt(max(before[name].shape[-2:])) for name in names}
        stretch = stretches.pop() if len(stretches) == 1 else math.nan
        by_rule = {"adamw": np.abs(g0), "sgd": g0**2 / (1 - 0.9), "muon": 0.2 * stretch * np.abs(g0)}
        yield "elr", address, eta * by_rule[rule_of(names[0])], 1e-6
        if rule_of(names[0]) == "adamw" and reads:
            v = stacked(after, [name + "/exp_avg_sq" for name in names], False)
            state = np.sqrt(v / (1 - 0.95 ** (row + 1))) + 1e-8
            yield "elr_state", address, eta * g0**2 * np.mean(1 / state, 0), 1e-6

    for row in range(6):
        for address in addresses:
            history = [v[address] for v in vectors[: row + 2]]
            for figures in (
                slow.of_one_vector(address, states[row + 1], compose, history),
                slow.of_neighbours(address, vectors[row + 1]),
                figures_of_maps(address, row),
            ):
                for name, at, value, tolerance in figures:
                    np.testing.assert_allclose(
                        trace[name, at][row],
                        value,
                        rtol=tolerance,
                        atol=tolerance,
                        err_msg=f"{name} of {at}, row {row}",
                    )
                    seen |= slow.columns_of([name])
    of_state = {"elr_state"} if rule != "sgd" and strategy != "ap" else set()  # under Muon of the head
    of_branches = slow.columns_of(peaks) - {"weight_peak"}
    assert seen - of_branches == slow.OF_HISTORY | of_state | {
        name for name, strategies in slow.OF_SOME.items() if strategy in strategies
    }
    assert rule != "adamw" or all(len(rows) > 1 for rows in peaks.values())
    if model:
        assert peaks.keys() >= {"weight_peak_gate", "weight_peak_experts_gate"}
        assert ("weight_peak_router" in peaks) == ("hg" not in strategy)
        of_mlp = "layers.0.mlp.input_norm" + ("[gate]" if "hg" in strategy else "")
        known = np.isfinite(trace["elr", of_mlp]).all()
        assert known == (rule != "muon" or "inner = 20" in model) and (known or np.isnan(trace["elr", of_mlp]).all())


def test_without_decay_there_is_no_equilibrium(tmp_path: pathlib.Path) -> None:
    record(tmp_path, strategy="gemma", optimizer="weight_decay = 0.0")
    trace = scalevec.open_trace(tmp_path / "run/trace.h5")
    for site in trace.sites:
        assert np.all(trace["weight_rotation", site.address] > 0)
        assert np.all(np.isnan(trace["rotation_ratio", site.address])), site.address
        assert np.all(trace["decay_horizon", site.address] == 0)


# Where others are compared. That a test names its columns is checked; that it compares them is for who reads it.
ELSEWHERE = {
    "test_traced_by_hand.test_decay_takes_a_vector_where_the_trace_says": {"decay_target"},
    "test_tracer_edges.test_what_is_not_finite_is_counted_with_site_channel_and_step": {"nonfinite", "nonfinite_channel", "nonfinite_tensor"},
    "test_tracer_edges.test_changes_of_sign_and_the_rows_of_the_largest_maps": {
        "sign_flips", "channel_flips", "weight_peak", "weight_peak_BRANCH",
    },
    "test_traced_inputs.compare": {"input_moment", "input_condition", "scaled_input_condition", "jacobi_gap"},
    "curvature_reference.compare": {"log_curvature", "log_curvature_error"} | {
        f"{block}_{name}" for block in ("vector", "maps", "joint")
        for name in ("sharpness", "sharpness_bound", "trace", "trace_error", "frobenius")
    },
    "test_attention_entropy.test_entropy_of_attention": {"attention_entropy"},
}  # fmt: skip


def test_every_column_has_a_reference() -> None:
    """One that is new and has none is missing here; a place that is gone, or names its column no more, is told."""
    compared = slow.OF_HAND | slow.OF_FORMULAS | slow.OF_HISTORY | {"elr_state"} | set(slow.OF_SOME)
    for place, names in ELSEWHERE.items():
        file, function = place.split(".")
        text = (pathlib.Path(__file__).parent / f"{file}.py").read_text()
        body = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == function)
        told = ast.unparse(body)
        for name in names:
            block, _, ending = name.partition("_")
            stem = name.removesuffix("BRANCH")
            assert stem in told or (block in ("vector", "maps", "joint") and ending in told), (place, name)
        compared |= names
    assert compared == {name for name, *_ in core.tracer_columns()}
