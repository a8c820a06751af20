"""Curvature of the loss beside scale vectors, in a PyTorch loop: by differentiating gradients again."""

from __future__ import annotations

import contextlib
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


class Curvature:
    """Of the loss that `loss` returns with its graph, in the vectors that learn and the maps beside them."""

    def __init__(
        self, model: torch.nn.Module, vectors: list[_scalevec.TracedVector], loss: Callable[[], torch.Tensor]
    ) -> None:
        """Raises ValueError where what stands beside a vector is no parameter of the model."""
        self._model, self._loss = model, loss
        self._parameters = {p.data_ptr(): p for p in model.parameters()}
        self._devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
        self._beside: list[tuple[_scalevec.TracedVector, torch.Tensor, list[torch.Tensor]]] = []
        for v in vectors:
            stored, *maps = (self._parameter(v, name, t) for name, t in (("vector", v.stored), *v.maps))
            self._beside.append((v, stored, maps))
        self.running = False  # `loss` is being called

    def _parameter(self, vector: _scalevec.TracedVector, name: str, tensor: torch.Tensor) -> torch.Tensor:
        found = self._parameters.get(tensor.data_ptr())
        if found is None or found.shape != tensor.shape:
            raise ValueError(
                f"sv.trace: curvature is differentiated by parameters of the model, and the {name} of {vector.address} is "
                "none of them, or a part of one; leave curvature out"
            )
        return found

    @contextlib.contextmanager
    def _leaves(self) -> Iterator[dict[str, torch.Tensor]]:
        """Effective vectors, but for a constant, by address, which the model computes from meanwhile."""
        learning = {v.address: stored for v, stored, _ in self._beside if stored.requires_grad}
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
            ValueError: the loss does not depend on a vector.
        """
        # Fused attention has no second derivative. What dropout draws here, the training must draw again.
        plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with torch.random.fork_rng(self._devices), torch.enable_grad(), plain, self._leaves() as leaves:
            blocks = [
                (v, leaves[v.address], [w for w in maps if w.requires_grad])
                for v, _, maps in self._beside
                if v.address in leaves
            ]
            tensors = {id(t): t for _, g, maps in blocks for t in (g, *maps)}
            self.running = True
            try:
                loss = self._loss()
            finally:
                self.running = False
            found = torch.autograd.grad(loss, list(tensors.values()), create_graph=True, allow_unused=True)
            gradients = {key: d for key, d in zip(tensors, found, strict=True) if d is not None}
            for v, g, maps in blocks:
                if id(g) not in gradients:
                    raise ValueError(
                        f"sv.trace: the loss that curvature gives does not depend on {v.address}; let it come from the model "
                        "that is traced, with its own parameters"
                    )
                for w in maps:
                    gradients.setdefault(id(w), torch.zeros_like(w))
                effective = g if isinstance(self._model, Module) else g + v.offset
                tracer.note_curvature(
                    v.address,
                    g=effective.detach().double().tolist(),
                    gradient=gradients[id(g)].detach().double().tolist(),
                    vector=_spectrum_of([g], gradients),
                    maps=_spectrum_of(maps, gradients) if maps else None,
                    joint=_spectrum_of([g, *maps], gradients) if maps else None,
                )
