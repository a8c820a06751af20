"""What a trace holds, slowly: docs/trace_metrics.md in NumPy, float64, from the tensors before and after each step."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import torch
from tiny_training import magnitude_direction


def gradient_by_autograd(before, gradients, address: str, compose=magnitude_direction) -> tuple[np.ndarray, float]:
    """dL/dg as the least-squares answer of J^T dL/dg = (dL/dalpha, dL/dbeta), J by autograd; what that leaves over."""
    if address + ".weight" in before:
        return gradients[address + ".weight"].double().numpy(), 0.0
    alpha, beta = before[address + ".alpha"].double(), before[address + ".beta"].double()
    jacobian = torch.autograd.functional.jacobian(compose, (alpha, beta))
    rows = torch.cat([jacobian[0], jacobian[1]], dim=1).T.numpy()
    right = torch.cat([gradients[address + ".alpha"], gradients[address + ".beta"]]).double().numpy()
    answer = np.linalg.lstsq(rows, right, rcond=None)[0]
    return answer, float(np.linalg.norm(rows @ answer - right))


def maps_of(address: str, slots: Collection[str] = ()) -> list[str]:
    """slots: names of the model's tensors, where it may be a mixture.

    Its routed experts, each branch's in one tensor, read what the shared one's branch reads. The router reads the
    vector of all that have none of their own.
    """
    part, _, name = address.rpartition(".")
    if address == "final_norm":
        return ["head.weight"]
    if name.startswith("input_norm"):
        own, all_of = re.findall(r"\[(\w+)\]", name), ["q", "k", "v"] if part.endswith("attn") else ["gate", "up"]
        branches = own or [b for b in all_of if not any(slot.startswith(f"{address}[{b}]") for slot in slots)]
        of_mixture = [*(["router"] if not own else []), *(f"experts.{branch}" for branch in branches)]
        branches += [branch for branch in of_mixture if f"{part}.{branch}.weight" in slots]
        return [f"{part}.{branch}.weight" for branch in branches]
    if part == "lm_head":
        return ["head.weight"]
    return [part + ".weight"]  # layers.0.attn.q.output_scale


def stacked(tensors: dict[str, torch.Tensor], names: list[str], by_row: bool) -> np.ndarray:
    """The maps beside a vector, one column for each of its channels."""
    maps = [tensors[name].double().numpy() for name in names]
    return np.concatenate([w.T if by_row else w.reshape(-1, w.shape[-1]) for w in maps])


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


def producer_of(address: str, slots: Collection[str] = ()) -> str | None:
    """The map whose output a vector scales; slots: as of maps_of. Behind a mixture stands no map but a sum of several."""
    part, _, name = address.rpartition(".")
    if name in ("output_scale", "output_norm") and part.split(".")[-1] not in ("attn", "mlp"):
        return {"lm_head": "head"}.get(part, part) + ".weight"
    sandwiched = {"attn.output_norm": "o", "mlp.output_norm": "down", "attn.q_norm": "q", "attn.k_norm": "k"}
    kind = ".".join(address.split(".")[-2:])
    if kind == "mlp.output_norm" and f"{part}.router.weight" in slots:
        return None
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
        sum(np.sum((a < 0) != (b < 0)) for a, b in itertools.pairwise(history)),
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
    others = [a for a in g if "[" in address and "[" in a and a != address and a.partition("[")[0] == norm]
    if others:
        yield "branch_cosine", address, np.mean([cosine(here - 1, g[a] - 1) for a in others]), 1e-9
        for other in others:
            branch = other.partition("[")[2].rstrip("]").replace(".", "_")
            yield f"branch_cosine_{branch}", address, cosine(here - 1, g[other] - 1), 1e-9
    below = re.sub(r"layers\.(\d+)", lambda m: f"layers.{int(m[1]) + 1}", address)
    if below != address and below in g:
        fine = 1e-9 + 1e-14 * sum(np.max(np.abs(v)) / (np.std(v) or 1.0) for v in (here, g[below]))
        yield "layer_cosine", address, cosine(here - here.mean(), g[below] - g[below].mean()), fine
    keys = re.sub(r"\.q(_norm|\.output_norm)$", r".k\1", address)
    if keys != address and keys in g:  # heads of 8
        queries, of_keys = here.reshape(-1, 8), g[keys].reshape(-1, 8)
        products = queries * of_keys.repeat(len(queries) // len(of_keys), 0)
        yield "qk_temperature", address, math.sqrt(np.mean(np.sum(products**2, 1) / 8)), 1e-12
        yield "qk_logit_bound", address, math.sqrt(8) * np.max(np.abs(products)), 1e-12
    produced = producer_of(address)
    readers = [a for a in g if ("input_norm" in a or a == "final_norm") and produced in maps_of(a, g)]
    for reader in readers:
        field = np.log(np.outer(here, g[reader]) ** 2)
        yield "dual_log_mean", address, field.mean(), 1e-9
        yield "dual_log_sd_row", address, np.std(field[:, 0]), 1e-9
        yield "dual_log_sd_column", address, np.std(field[0]), 1e-9


def angle(w: np.ndarray, w1: np.ndarray) -> float:
    a, b = w.ravel() / np.linalg.norm(w), w1.ravel() / np.linalg.norm(w1)
    return 2 * math.asin(np.linalg.norm(a - b) / 2)


# --- of vectors that are anything: a tolerance is the largest difference that rounding can make ---

STORED = 2**-24 + 1e-12  # a value's rounding to float32, its own in float64 besides


def beside(address: str, slots: Collection[str] = ()) -> tuple[list[str], bool]:
    """The maps beside a vector, and whether its channels are their rows; slots: as of maps_of."""
    if "input_norm" in address or address == "final_norm":
        return maps_of(address, slots), False
    produced = producer_of(address, slots)
    return [produced] if produced else [], True


def branch_of(slot: str) -> str:
    """As columns have it: "experts_gate" of "layers.0.mlp.experts.gate.weight"."""
    return "_".join(slot.split(".")[3:-1])


def of_shape(address: str, g: np.ndarray) -> Figures:
    order, squares = sorted(g), [v * v for v in g]
    yield "min", address, order[0], 1e-12 * abs(order[0])
    yield "max", address, order[-1], 1e-12 * abs(order[-1])
    yield "negative", address, sum(v < 0 for v in g) / len(g), 1e-12
    yield "near_zero", address, sum(-1e-3 < v < 1e-3 for v in g) / len(g), 1e-12
    yield "precond_dispersion", address, max(squares) / min(squares), 1e-11 * max(squares) / min(squares)
    logs = np.log(squares)
    yield "precond_log_spread", address, math.sqrt(sum((logs - sum(logs) / len(g)) ** 2) / len(g)), 1e-11


def of_lines(address: str, g: list[np.ndarray], w: list[np.ndarray], dw: np.ndarray, rounding: float) -> Figures:
    """g and w, a column for each channel: before the first step, before this one and after it.

    rounding: of the tracer's sums over a line, relative to the sum of magnitudes.
    """
    channels, moved = range(len(g[2])), w[2] - w[1]
    # The sums that N^2 is put together from.
    parts = np.sum(w[1] ** 2 + 2 * np.abs(w[1] * moved) + moved**2, 0)
    flow = [g[2][j] ** 2 * np.eye(len(moved)) + np.outer(w[2][:, j], w[2][:, j]) for j in channels]
    eigenvalues = np.linalg.eigvalsh(np.stack(flow))  # of what the gradient flow of an effective column meets
    iso, radial = eigenvalues[:, 0], eigenvalues[:, -1]
    fine = 1e-14 * radial
    yield "precond_iso", address, iso, STORED * iso + fine
    yield "precond_radial", address, radial, STORED * radial + rounding * parts + fine
    condition = radial / iso
    yield "precond_condition", address, condition, STORED * condition + (rounding * parts + 2 * condition * fine) / iso
    s_first, s0, s = (np.array([g[i][j] ** 2 - w[i][:, j] @ w[i][:, j] for j in channels]) for i in range(3))
    yield (
        "balance_drift", address, s - s_first,
        STORED * np.abs(s - s_first) + rounding * (parts + np.sum(w[0] ** 2, 0)) + fine,
    )  # fmt: skip
    yield (
        "balance_change", address, s - s0,
        STORED * np.abs(s - s0) + rounding * np.sum(2 * np.abs(w[1] * moved) + moved**2, 0) + fine,
    )  # fmt: skip
    cosines = [cosine(g[1][j] * moved[:, j], w[1][:, j] * (g[2][j] - g[1][j])) for j in channels]
    yield "channel_cosine", address, np.array(cosines), STORED + 2 * rounding + np.zeros(len(cosines))
    aligned = np.array([cosine(w[1][:, j], dw[:, j]) for j in channels])
    yield "radial_align", address, aligned**2, STORED * aligned**2 + 4 * rounding * np.abs(aligned) + 4 * rounding**2
    yield from of_norms(address, g[2], w[1], w[2], rounding)


def of_norms(address: str, g: np.ndarray, w0: np.ndarray, w: np.ndarray, rounding: float) -> Figures:
    """g and w after the step, w0 before it."""
    squares, parts = np.sum(w**2, 0), np.sum((np.abs(w0) + np.abs(w - w0)) ** 2, 0)
    norms = np.sqrt(squares)
    yield "column_norm", address, norms, STORED * norms + rounding * parts / norms
    x, y = np.log(norms), log(g)
    off = np.max(rounding * parts / squares)  # of a log N
    (pearson, slope), away = line(x, y), x - x.mean()
    moves = np.sum(np.abs(y - y.mean())) + 2 * abs(slope) * np.sum(np.abs(away))
    yield "log_slope", address, slope, off * moves / np.sum(away**2) + 1e-11
    yield "log_pearson", address, pearson, 2 * off * math.sqrt(len(g)) / np.linalg.norm(away) + 1e-11
    yield "log_spearman", address, line(ranks(x), ranks(y))[0], 1e-11


def of_gauge(address: str, product: np.ndarray, w: np.ndarray, dw: np.ndarray) -> Figures:
    """product: g dL/dg; where the identity does not hold, of sums in float64."""
    residual = np.abs(product - np.sum(w * dw, 0)) / np.sum(np.abs(w * dw), 0)
    yield "gauge_residual", address, residual, STORED * residual + 1e-12


def of_gradients(address: str, dg: np.ndarray, dw: np.ndarray, off: float, rounding: float) -> Figures:
    """off: what the length of dg is known to."""
    by_vector, by_maps = sum(v * v for v in dg), sum(v * v for v in dw.flat)
    share = by_vector / (by_vector + by_maps)
    yield "vector_share", address, share, share * (2 * rounding + 2 * off / math.sqrt(by_vector)) + 1e-12


def of_maps(address: str, maps: list[list[np.ndarray]], rounding: float) -> Figures:
    """maps: before the first step, before this one and after it."""
    first, norm = (math.sqrt(sum(float(np.sum(w * w)) for w in maps[i])) for i in (0, 2))
    yield "weight_norm", address, norm, 2 * rounding * norm
    yield "weight_growth", address, norm / first, 4 * rounding * norm / first
    turns = [angle(*pair) for pair in zip(maps[1], maps[2], strict=True)]
    # An angle is a difference of products of sums, of which a move along the map leaves less.
    lost = max(1 / (1 - cosine(a.ravel(), (b - a).ravel()) ** 2) for a, b in zip(maps[1], maps[2], strict=True))
    turned = math.sqrt(np.mean(np.square(turns)))
    yield "weight_rotation", address, turned, turned * rounding * (2 + 2 * lost)


def of_length(address: str, g: np.ndarray, dg: np.ndarray, off: float, w: np.ndarray, dw: np.ndarray) -> Figures:
    """off: what <g, dg> is known to."""
    size = np.sum(np.abs(w * dw))
    residual = abs(sum(g * dg)) / size
    yield "length_residual", address, residual, off / size + 67 * 2**-24 * residual + 1e-12


def of_groups(
    address: str, w: np.ndarray, w1: np.ndarray, dw: np.ndarray, head: int, rate: float, rule: str, rounding: float
) -> Figures:
    """Of what an output norm normalises together: rows of a head, or all. w1: after the step."""
    per_head = address.split(".")[-2] in ("q", "k", "v") or address.endswith((".q_norm", ".k_norm"))
    rows = head if per_head else len(w)
    norms = [np.linalg.norm(w[i : i + rows]) for i in range(0, len(w), rows)]
    rates = [rate / norm**2 if rule == "sgd" else rate / norm for norm in norms]
    yield "elr_invariant", address, sum(rates) / len(rates), 2 * rounding * max(rates)
    pairs = [[t[i : i + rows] for t in (w, w1)] for i in range(0, len(w), rows)]
    turned = [angle(*pair) for pair in pairs]
    lost = max(1 / (1 - cosine(a.ravel(), (b - a).ravel()) ** 2) for a, b in pairs)
    for name, value in (("min", min(turned)), ("max", max(turned))):
        yield f"group_rotation_{name}", address, value, max(turned) * rounding * (2 + 2 * lost)
    along = [abs(cosine(w[i : i + rows].ravel(), dw[i : i + rows].ravel())) for i in range(0, len(w), rows)]
    yield "scale_inv_residual", address, max(along), 3 * rounding


def columns_of(names: Iterable[str]) -> set[str]:
    """As the list of columns has them."""
    return {re.sub("_((experts_)?(gate|up)|q|k|v|router)$", "_BRANCH", name) for name in names}


# What tests of test_tracer_columns.py compare with a formula, and assert to have compared.
OF_BRANCHES = {
    f"{name}_BRANCH" for name in (
        "column_norm", "weight_norm", "weight_growth", "weight_rotation", "log_pearson", "log_spearman",
        "log_slope",
    )
}  # fmt: skip
OF_NORMS = {
    "elr_invariant",
    "scale_inv_residual",
    "group_rotation_min",
    "group_rotation_max",
}  # of these, at output norms
OF_HAND = {
    "min", "max", "negative", "near_zero", "precond_dispersion", "precond_log_spread", "weight_norm", "weight_growth",
    "weight_rotation", "precond_iso", "precond_radial", "precond_condition", "balance_drift", "balance_change",
    "channel_cosine", "radial_align", "log_slope", "vector_share", "gauge_residual", "length_residual", "column_norm", "log_pearson", "log_spearman", *OF_BRANCHES, *OF_NORMS,
}  # fmt: skip
OF_SGD = {"balance_decay", "balance_step", "noise_balance"}
OF_FORMULAS = OF_SGD | {
    "effective", "mean", "magnitude", "participation", "gini", "rotation", "column_norm", "precond_radial", "balance",
    "precond_gain", "gauge_residual", "saliency", "rel_update", "channel_share", "amplification", "log_pearson", "elr",
}  # fmt: skip
OF_HISTORY = {
    "kurtosis", "log_spread", "sign_flips", "layer_cosine", "decay_horizon", "rotation_ratio", "wd_balance",
    "growth_prediction", "log_spearman", "growth_correlation", "growth_slope", "self_amplification", "elr", "weight_peak",
}  # fmt: skip
OF_SOME = {  # by strategy, of test_columns_of_history_neighbours_and_state
    "metric_min": ("hg+dp+or", "hg+dnp+er"), "metric_max": ("hg+dp+or", "hg+dnp+er"),
    "branch_cosine": ("hg+dp+or", "hg+dnp+er"), "branch_cosine_BRANCH": ("hg+dp+or", "hg+dnp+er"), "scale_inv_residual": ("gemma", "hg+dnp+er"),
    "qk_temperature": ("hg+dnp+er", "gemma"), "qk_logit_bound": ("hg+dnp+er", "gemma"),
    **dict.fromkeys(("dual_log_mean", "dual_log_sd_row", "dual_log_sd_column"), ("hg+dp+or", "hg+dnp+er", "gemma")),
}  # fmt: skip
