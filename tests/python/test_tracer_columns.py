"""Columns of the trace against slow formulas in NumPy, float64, from the tensors before and after each step."""

from __future__ import annotations

import itertools
import math
import pathlib
import re
from collections.abc import Iterator

import h5py
import numpy as np
import pytest
import scalevec
import torch
from scalevec import _scalevec as core
from tiny_training import effective, experiment, exponential, final_norm_tracer, magnitude_direction, masters


def gradient_by_autograd(before, gradients, address: str) -> np.ndarray:
    """dL/dg as the least-squares answer of J^T dL/dg = (dL/dalpha, dL/dbeta), J by autograd."""
    if address + ".weight" in before:
        return gradients[address + ".weight"].double().numpy()
    alpha, beta = before[address + ".alpha"].double(), before[address + ".beta"].double()
    jacobian = torch.autograd.functional.jacobian(magnitude_direction, (alpha, beta))
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


# --- columns of history, neighbours and the optimizer's state ---


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Pearson's correlation and the slope of y on x."""
    if np.ptp(x) == 0:
        return math.nan, math.nan
    slope = np.polyfit(x - x.mean(), y, 1)[0]
    return (np.corrcoef(x, y)[0, 1] if np.ptp(y) else math.nan), slope


def ranks(x: np.ndarray) -> np.ndarray:
    return (x[None] < x[:, None]).sum(1) + (x[None] == x[:, None]).sum(1) / 2


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / size) if size else math.nan


def producer_of(address: str) -> str | None:
    """The map whose output a vector scales."""
    part, _, name = address.rpartition(".")
    if name in ("output_scale", "output_norm") and part.split(".")[-1] not in ("attn", "mlp"):
        return {"lm_head": "head"}.get(part, part) + ".weight"
    sandwiched = {"attn.output_norm": "o", "mlp.output_norm": "down", "attn.q_norm": "q", "attn.k_norm": "k"}
    kind = ".".join(address.split(".")[-2:])
    return f"{part}.{sandwiched[kind]}.weight" if kind in sandwiched else None


def log(x: np.ndarray) -> np.ndarray:
    return np.log(np.abs(x))


Figures = Iterator[tuple[str, str, np.ndarray | float, float]]  # column, address, value, tolerance


def of_one_vector(address: str, tensors, compose, history: list[np.ndarray]) -> Figures:
    g = history[-1]
    centred = g - g.mean()
    kurtosis = np.mean(centred**4) / np.mean(centred**2) ** 2 - 3 if np.ptp(g) else math.nan
    fine = 1e-9 + 1e-14 * np.max(np.abs(g)) / (np.std(g) or 1.0)  # round-off of g beside what g varies by
    yield "kurtosis", address, kurtosis, fine
    yield "log_spread", address, np.std(log(g)), 1e-9
    yield (
        "sign_flips",
        address,
        sum(np.sum((a < 0) != (b < 0)) for a, b in itertools.pairwise(history[1:])),
        0,
    )
    if address + ".alpha" in tensors:
        stored = tensors[address + ".alpha"].double(), tensors[address + ".beta"].double()
        jacobian = torch.cat(torch.autograd.functional.jacobian(compose, stored), dim=1)
        eigenvalues = torch.linalg.eigvalsh(jacobian @ jacobian.T)
        yield "metric_min", address, float(eigenvalues[0]), 1e-9
        yield "metric_max", address, float(eigenvalues[-1]), 1e-9


def of_neighbours(address: str, g: dict[str, np.ndarray]) -> Figures:
    here = g[address]
    norm = address.partition("[")[0]
    others = [a for a in g if "[" in address and a != address and a.partition("[")[0] == norm]
    if others:
        yield "branch_cosine", address, np.mean([cosine(here - 1, g[a] - 1) for a in others]), 1e-9
    below = re.sub(r"layers\.(\d+)", lambda m: f"layers.{int(m[1]) + 1}", address)
    if below != address and below in g:
        fine = 1e-9 + 1e-14 * sum(np.max(np.abs(v)) / (np.std(v) or 1.0) for v in (here, g[below]))
        yield "layer_cosine", address, cosine(here - here.mean(), g[below] - g[below].mean()), fine
    if address.endswith(".q_norm"):
        product = here * g[address[: -len("q_norm")] + "k_norm"]
        yield "qk_temperature", address, np.linalg.norm(product) / math.sqrt(8), 1e-12
        yield "qk_logit_bound", address, math.sqrt(8) * np.max(np.abs(product)), 1e-12
    produced = producer_of(address)
    readers = [a for a in g if ("input_norm" in a or a == "final_norm") and produced in maps_of(a)]
    for reader in readers:
        field = np.log(np.outer(here, g[reader]) ** 2)
        yield "dual_log_mean", address, field.mean(), 1e-9
        yield "dual_log_sd_row", address, np.std(field[:, 0]), 1e-9
        yield "dual_log_sd_column", address, np.std(field[0]), 1e-9


def angle(w: np.ndarray, w1: np.ndarray) -> float:
    a, b = w.ravel() / np.linalg.norm(w), w1.ravel() / np.linalg.norm(w1)
    return 2 * math.asin(np.linalg.norm(a - b) / 2)


def training_state(training) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in training.tensors.items()}


@pytest.mark.parametrize("strategy", ["standard", "hg+dp+or", "gemma", "ap", "hg+dnp+er"])
@pytest.mark.parametrize("rule", ["adamw", "sgd", "muon"])
def test_columns_of_history_neighbours_and_state(tmp_path: pathlib.Path, strategy: str, rule: str) -> None:
    training = core.Training(experiment(every=1, strategy=strategy, rule=rule))
    states, gradients, rates = [training_state(training)], [], []

    def on_step(event) -> bool:
        states.append(training_state(training))
        gradients.append({slot: g.clone() for slot, g in training.gradients.items()})
        rates.append(event["learning_rate"])
        return False

    core.run_training(training, tmp_path / "run", resume=False, command="t", on_step=on_step)
    trace = scalevec.open_trace(tmp_path / "run/trace.h5")
    addresses = [site.address for site in trace.sites]
    compose = exponential if strategy.endswith("er") else magnitude_direction
    decay_of = {slot: g["weight_decay"] for g in training.groups for slot in g["slots"]}
    rule_of = {slot: g["rule"] for g in training.groups for slot in g["slots"]}
    seen: set[str] = set()
    vectors = [{a: effective(s, a, compose) for a in addresses} for s in states]

    def figures_of_maps(address: str, row: int) -> Figures:
        eta, before, after = rates[row], states[row], states[row + 1]
        stored = next(s for s in (".beta", ".weight") if address + s in before)
        mu = decay_of[address + stored]
        yield "decay_horizon", address, sum(rates[: row + 1]) * mu, 1e-12
        reads = "input_norm" in address or address == "final_norm"
        produced = producer_of(address)
        names = maps_of(address) if reads else [produced] if produced else []
        pairs = [(before[n].double().numpy(), after[n].double().numpy()) for n in names]
        decay = decay_of[names[0]]
        if decay:
            turned = math.sqrt(np.mean([angle(*pair) ** 2 for pair in pairs]))
            yield (
                "rotation_ratio",
                address,
                turned / math.sqrt(2 * eta * decay * ((1 - 0.9) / (1 + 0.9) if rule_of[names[0]] == "adamw" else 1)),
                1e-4,
            )
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
        yield "log_spearman", address, line(ranks(log(n)), ranks(log(g)))[0], 1e-9
        if row:
            grown = line(log(n) - log(n0), log(g) - log(g0))
            # N is known to 67 roundings of float32, 4e-6, beside what its growth varies by.
            noise = 1e-6 + 4e-6 / np.std(log(n) - log(n0))
            yield "growth_correlation", address, grown[0], noise
            yield "growth_slope", address, grown[1], noise
            yield "self_amplification", address, line(log(g0), log(g) - log(g0))[1], 1e-6
        if rule_of[names[0]] == "adamw" and reads:
            v = np.concatenate([after[name + "/exp_avg_sq"].double().numpy() for name in names])
            state = np.sqrt(v / (1 - 0.95 ** (row + 1))) + 1e-8
            yield "elr_state", address, eta * g0**2 * np.mean(1 / state, 0), 1e-6

    for row in range(6):
        for address in addresses:
            history = [v[address] for v in vectors[: row + 2]]
            for figures in (
                of_one_vector(address, states[row + 1], compose, history),
                of_neighbours(address, vectors[row + 1]),
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
                    seen.add(name)
    assert {"kurtosis", "layer_cosine", "rotation_ratio", "growth_slope", "decay_horizon"} <= seen
    assert ("elr_state" in seen) == (rule != "sgd" and strategy != "ap")  # under Muon of the head
    for name, strategies in {
        "metric_min": ("hg+dp+or", "hg+dnp+er"), "branch_cosine": ("hg+dp+or", "hg+dnp+er"),
        "qk_temperature": ("gemma",), "scale_inv_residual": ("gemma", "hg+dnp+er"),
        "dual_log_mean": ("hg+dp+or", "hg+dnp+er", "gemma"),
    }.items():  # fmt: skip
        assert (name in seen) == (strategy in strategies), name


def test_without_decay_there_is_no_equilibrium(tmp_path: pathlib.Path) -> None:
    record(tmp_path, strategy="gemma", optimizer="weight_decay = 0.0")
    trace = scalevec.open_trace(tmp_path / "run/trace.h5")
    for site in trace.sites:
        assert np.all(trace["weight_rotation", site.address] > 0)
        assert np.all(np.isnan(trace["rotation_ratio", site.address])), site.address
        assert np.all(trace["decay_horizon", site.address] == 0)


def test_what_is_not_finite_is_counted_with_site_channel_and_step(tmp_path: pathlib.Path) -> None:
    """1,000 steps with NaN and infinities in vectors, their gradients, maps and theirs; the training goes on."""
    random = np.random.default_rng(3)
    tensors = {name: torch.ones(shape) for name, shape in {"g": 12, "w": (5, 12), "dg": 12, "dw": (5, 12)}.items()}
    tracer = final_norm_tracer(tmp_path / "run.h5", tensors["g"], tensors["w"])

    def view(tensor: torch.Tensor) -> dict:
        facts = {"rule": "sgd", "rate": 0.1, "gradient": tensors["dg" if tensor.dim() == 1 else "dw"]}
        return {**facts, "momentum": 0.9, "weight_decay": 0.0}

    expected = []
    for step in range(1, 1001):
        for t in tensors.values():
            t.copy_(torch.from_numpy(random.uniform(0.5, 1.5, t.shape)))
        channels = set(random.choice(12, random.integers(0, 4), replace=False).tolist())
        for channel in channels:
            tensors[random.choice(list(tensors))][..., channel] = random.choice([np.nan, np.inf, -np.inf])
        expected.append((len(channels), min(channels, default=math.nan)))
        tracer.before(step, view)
        tracer.after(step, view)
    assert tracer.close() == ""
    trace = scalevec.open_trace(tmp_path / "run.h5")
    found = np.stack([trace["nonfinite", "final_norm"], trace["nonfinite_channel", "final_norm"]], 1)
    np.testing.assert_array_equal(found, np.array(expected))
    whole = found[:, 0] == 0
    assert 100 < whole.sum() < 900
    assert np.isfinite(trace["gini", "final_norm"][whole]).all()
