"""Curvature of the loss beside scale vectors, in a PyTorch loop: by differentiating gradients again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch

from scalevec import _scalevec
from scalevec.module import Module


def _spectrum_of(tensors: list[torch.Tensor], gradients: dict[int, torch.Tensor]) -> _scalevec.Spectrum:
    """Of the Hessian in `tensors`."""
    sizes = [t.numel() for t in tensors]

    def product(v: torch.Tensor) -> torch.Tensor:
        parts = [part.to(t).reshape(t.shape) for part, t in zip(v.split(sizes), tensors, strict=True)]
        # A gradient that depends on nothing is that of a map which the loss does not reach.
        moving = [
            (gradients[id(t)], part) for t, part in zip(tensors, parts, strict=True) if gradients[id(t)].requires_grad
        ]
        if not moving:
            return torch.zeros(sum(sizes), dtype=torch.float64)
        outputs, weights = zip(*moving, strict=True)
        found = torch.autograd.grad(
            outputs, tensors, grad_outputs=weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([h.flatten().double() for h in found]).cpu()

    return _scalevec.spectrum(product, sum(sizes))


@dataclasses.dataclass(frozen=True)
class _Beside:
    vector: _scalevec.TracedVector
    stored: list[torch.Tensor]  # parameters that make up the vector
    maps: dict[str, torch.Tensor]  # by branch


class Curvature:
    """Of the loss that `loss` returns with its graph, in the vectors that learn and the maps beside them."""

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: dict[int, torch.nn.Parameter],
        vectors: list[_scalevec.TracedVector],
        loss: Callable[[], torch.Tensor],
    ) -> None:
        """parameters: the model's, by where they lie. Raises ValueError where what stands beside a vector is none."""
        self._model, self._loss = model, loss
        self._devices = sorted({p.device.index for p in parameters.values() if p.device.type == "cuda"})

        def parameter(vector: _scalevec.TracedVector, name: str, tensor: torch.Tensor) -> torch.Tensor:
            found = parameters.get(tensor.data_ptr())
            if found is None or found.shape != tensor.shape:
                raise ValueError(
                    f"sv.trace: curvature is differentiated by parameters of the model, and the {name} of {vector.address} "
                    "is none of them, or a part of one; leave curvature out"
                )
            return found

        self._beside = [
            _Beside(
                v,
                [parameter(v, "vector", t) for t in (v.stored, v.beta) if t is not None],
                {branch: parameter(v, branch, t) for branch, t in v.maps},
            )
            for v in vectors
        ]
        self.running = False  # `loss` is being called

    @contextlib.contextmanager
    def _leaves(self) -> Iterator[dict[str, torch.Tensor]]:
        """Effective vectors, but for a constant, by address, which the model computes from meanwhile."""
        learning = {b.vector.address: b.stored[0] for b in self._beside if any(p.requires_grad for p in b.stored)}
        if not isinstance(self._model, Module):
            yield learning
            return
        transformer = self._model.transformer()
        scales = transformer.scales
        lent = {
            address: scales[scales.index_of(address)].effective().to(stored.device).requires_grad_()
            for address, stored in learning.items()
        }
        override = _scalevec.Override(transformer, lent, allow_non_finite=True)
        try:
            yield lent
        finally:
            override.stop()

    def note(self, tracer: _scalevec.Tracer) -> None:
        """Measures it for the row to come. Touches no gradient of the loop, and draws none of its random numbers.

        Raises:
            ValueError: the loss does not depend on a vector, or a map beside it.
        """
        # Fused attention has no second derivative. What dropout draws here, the training must draw again.
        plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with torch.random.fork_rng(self._devices), torch.enable_grad(), plain, self._leaves() as leaves:
            blocks = [
                (b.vector, leaves[b.vector.address], {n: w for n, w in b.maps.items() if w.requires_grad})
                for b in self._beside
                if b.vector.address in leaves
            ]
            if not blocks:
                return
            tensors = {id(t): t for _, g, maps in blocks for t in (g, *maps.values())}
            self.running = True
            try:
                loss = self._loss()
            finally:
                self.running = False
            found = torch.autograd.grad(loss, list(tensors.values()), create_graph=True, allow_unused=True)
            gradients = {key: d for key, d in zip(tensors, found, strict=True) if d is not None}
            for v, g, named in blocks:
                for name, t in {"vector": g, **named}.items():
                    if id(t) in gradients:
                        continue
                    if not name.startswith("experts."):  # which no token may have reached
                        raise ValueError(
                            f"sv.trace: the loss that curvature gives does not depend on the {name} of {v.address}; let it "
                            "come from the model that is traced, with its own parameters"
                        )
                    gradients[id(t)] = torch.zeros_like(t)
                maps = list(named.values())
                effective = g.detach().double() + (0.0 if isinstance(self._model, Module) else v.offset)
                tracer.note_curvature(
                    v.address,
                    g=effective.tolist(),
                    gradient=gradients[id(g)].detach().double().tolist(),
                    vector=_spectrum_of([g], gradients),
                    maps=_spectrum_of(maps, gradients) if maps else None,
                    joint=_spectrum_of([g, *maps], gradients) if maps else None,
                )
