"""Trainings whose vectors are set by hand, and what their traces are held against."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable

import numpy as np
import scalevec
import torch
from scalevec import _scalevec as core
from tiny_training import effective, magnitude_direction
from traced_reference import (
    Figures,
    beside,
    branch_of,
    columns_of,
    gradient_by_autograd,
    maps_of,
    of_gradients,
    of_length,
    of_lines,
    of_maps,
    of_norms,
    of_shape,
    producer_of,
    stacked,
)


@dataclasses.dataclass
class Course:
    """A training whose vectors were set by hand, with a row for every step."""

    trace: scalevec.Trace
    states: list[dict[str, torch.Tensor]]  # before the first step, and after each
    gradients: list[dict[str, torch.Tensor]]  # of each step
    compose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    offsets: dict[str, float]  # what norms add to what is stored
    rounding: float  # of the tracer's sums over a line, relative to the sum of magnitudes

    def vector(self, state: int, address: str) -> np.ndarray:
        return effective(self.states[state], address, self.compose) + self.offsets.get(address, 0.0)

    def figures(self, address: str, row: int) -> Figures:
        names, by_row = beside(address, self.states[0])
        three = [self.states[i] for i in (0, row, row + 1)]
        g = [self.vector(i, address) for i in (0, row, row + 1)]
        yield from of_shape(address, g[2])
        if not names:
            return
        maps = [[s[n].double().numpy() for n in names] for s in three]
        yield from of_maps(address, maps, self.rounding)
        if by_row and not address.endswith("output_scale"):
            return
        for k, slot in enumerate(names if len(names) > 1 else []):
            before, after = (stacked(s, [slot], by_row) for s in three[1:])
            for figures in (
                of_norms(address, g[2], before, after, self.rounding),
                of_maps(address, [[state[k]] for state in maps], self.rounding),
            ):
                yield from ((f"{name}_{branch_of(slot)}", *rest) for name, *rest in figures)
        w, gradient = [stacked(s, names, by_row) for s in three], self.gradients[row]
        dw = stacked(gradient, names, by_row)
        yield from of_lines(address, g, w, dw, self.rounding)
        dg, left = gradient_by_autograd(three[1], gradient, address, self.compose)
        # Gradients of components disagree by their rounding, which the way back to dL/dg divides by g.
        yield from of_gradients(address, dg, dw, 2 * left / np.abs(g[1]).min(), self.rounding)
        normalised = {producer_of(site.address) for site in self.trace.sites if site.address.endswith("_norm")}
        if not by_row and normalised.issuperset(names):
            components = [self.states[row][address + end].double() for end in (".alpha", ".beta")]
            off = 2 * left * (1 + math.sqrt(len(dg)) + sum(float(t.norm()) for t in components))
            yield from of_length(address, g[1], dg, off, w[1], dw)


Found = dict[str, dict[str, list[tuple[np.ndarray | float, np.ndarray | float]]]]


def hold(course: Course, row: int, figures: Figures, found: Found) -> None:
    for name, address, value, bound in figures:
        off = np.abs(course.trace[name, address][row] - value)
        assert np.all(off <= bound), (name, address, row, np.max(off), np.max(bound))
        found.setdefault(name, {}).setdefault(address, []).append((value, bound))


def columns_at(found: Found, address: str) -> set[str]:
    return columns_of({name: sites for name, sites in found.items() if address in sites})


def assert_an_error_would_show(found: Found) -> None:
    """Of 1 % in any column; and channels, or sites and rows, are not alike."""
    for name, sites in found.items():
        figures = [figure for rows in sites.values() for figure in rows]
        values, bounds = (np.concatenate([np.atleast_1d(f[i]) for f in figures]) for i in (0, 1))
        assert np.ptp(values) > 20 * np.median(bounds), name
        assert np.any(0.01 * np.abs(values) > 2 * bounds), name
        for value, _ in figures:
            assert np.size(value) == len(np.unique(value)), name


def set_by_hand(t: torch.Tensor, random: torch.Generator) -> None:
    """Most entries from 1 / e to e, some below 0, and one or more that count as near it."""
    t.copy_(torch.exp(0.5 * torch.randn(t.shape, generator=random)))
    t[:2] *= -1
    near = 2 + int(torch.randint(1, 5, (), generator=random))
    t[2:near] = 3e-4 * torch.randn(near - 2, generator=random).sign()


def loop_in_float64(path: pathlib.Path, rule: str, loss, steps: int = 4, decay: float = 0.3) -> tuple[Course, list]:
    """Three norms in a PyTorch loop: one plain, one that adds 1, and one whose vector the loss meets a second time."""
    random = torch.Generator().manual_seed(6)
    outputs = {"q": 12, "k": 4, "v": 4, "gate": 70, "up": 70, "head": 9}
    offsets = {"layers.0.attn.input_norm": 0.0, "layers.0.mlp.input_norm": 1.0, "final_norm": 0.0}
    tensors: dict[str, torch.nn.Parameter] = {}
    for address, offset in offsets.items():
        g = torch.empty(16, dtype=torch.float64)
        set_by_hand(g, random)
        tensors[address + ".weight"] = torch.nn.Parameter(g - offset)
        for name in maps_of(address):
            rows = outputs[name.split(".")[-2]]
            tensors[name] = torch.nn.Parameter(0.3 * torch.randn(rows, 16, dtype=torch.float64, generator=random))
    vectors = [
        core.TracedVector(
            address=address, native=address, role="final" if address == "final_norm" else "input", offset=offset,
            eps=1e-6, stored=tensors[address + ".weight"].detach(),
            consumers=[(name.split(".")[-2], tensors[name].detach()) for name in maps_of(address)],
        )
        for address, offset in offsets.items()
    ]  # fmt: skip
    groups = [
        {"params": [t for t in tensors.values() if t.dim() == 2], "lr": 0.05, "weight_decay": 0.1},
        {"params": [t for t in tensors.values() if t.dim() == 1], "lr": 4e-4, "weight_decay": decay},
    ]
    optimizer = torch.optim.SGD(groups) if rule == "sgd" else torch.optim.AdamW(groups)
    states, gradients = [{slot: t.detach().clone() for slot, t in tensors.items()}], []
    with scalevec.trace(torch.nn.ParameterList(tensors.values()), optimizer, path, every=1, vectors=vectors) as tracer:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(tensors, offsets, torch.randn(40, 16, dtype=torch.float64, generator=random)).backward()
            optimizer.step()
            tracer.step()
            states.append({slot: t.detach().clone() for slot, t in tensors.items()})
            gradients.append({slot: t.grad.clone() for slot, t in tensors.items()})
        faults = tracer.gauge_faults
    # Some hundred products and sums in float64, here and there.
    return Course(scalevec.open_trace(path), states, gradients, magnitude_direction, offsets, 1e-13), faults
