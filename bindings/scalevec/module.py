"""Our transformer as a torch.nn.Module, to train in a PyTorch loop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from scalevec import _scalevec

if TYPE_CHECKING:
    from scalevec.editing import Path


class Module(torch.nn.Module):
    """A model of any strategy or family whose tensors are parameters: scale vectors, their components, linear maps.

    ::

        model = sv.Module.new("unified", vocabulary=2048)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.004)
        with sv.trace(model, optimizer, "run.h5") as tracer:
            ...                                          # as with any other module
        model.save("trained")                            # a MODEL for every command

    Parameters have the names of the architecture, "layers.0.attn.input_norm[q].alpha". The balance loss of mixtures
    is not part of the output: `scalevec train` adds it.
    """

    def __init__(self, spec: _scalevec.ModelSpec, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.spec = spec
        # Rotary factors stay as the file has them, in float32: nobody trains them.
        self._fixed = {slot: tensor.float() for slot, tensor in tensors.items() if slot == "rope_factors"}
        for slot, tensor in tensors.items():
            if slot in self._fixed:
                continue
            *path, leaf = slot.split(".")
            inner: torch.nn.Module = self
            for name in path:
                if name not in inner._modules:
                    inner.add_module(name, torch.nn.Module())
                inner = inner._modules[name]  # type: ignore[assignment]
            inner.register_parameter(leaf, torch.nn.Parameter(tensor))
        self._built: tuple[list[tuple[torch.Tensor, int, torch.dtype]], _scalevec.Transformer] | None = None

    @classmethod
    def new(cls, strategy: str = "unified", preset: str = "nano", *, seed: int = 0, **sizes: int) -> Module:
        """A model to train from the start, as `scalevec train` draws it.

        Args:
            strategy: words of docs/experiment_files.md, "hg+dnp+or".
            preset: the sizes, "nano", "micro", "0.12B", ...
            seed: of the weights, the same for every strategy.
            sizes: of the preset's to change: vocabulary, width, layers, head_dim, kv_heads, inner, context, ...

        Raises:
            InvalidError: E_VALUE for a strategy, preset or size that is none; E_CONFIG for sizes that do not fit.
        """
        spec = _scalevec.ModelSpec(_scalevec.make_config(strategy, preset, sizes))
        return cls(spec, spec.draw(seed))

    @classmethod
    def open(cls, path: Path) -> Module:
        """A model to train on, in float32: a GGUF file, a safetensors file or a folder.

        Raises: as `scalevec.load`.
        """
        checkpoint = _scalevec.Checkpoint(os.fspath(path))
        return cls(_scalevec.ModelSpec(checkpoint), _scalevec.read_tensors(checkpoint))

    def transformer(self) -> _scalevec.Transformer:
        """What computes, around the parameters as they are."""
        tensors: dict[str, torch.Tensor] = dict(self.named_parameters(remove_duplicate=False))
        # Moved to a device or another dtype, or other tensors in their place.
        now = [(tensor, tensor.data_ptr(), tensor.dtype) for tensor in tensors.values()]
        if self._built is None or not _are_same(self._built[0], now):
            device = next(iter(tensors.values())).device
            fixed = {slot: tensor.to(device) for slot, tensor in self._fixed.items()}
            self._built = (now, self.spec.transformer({**tensors, **fixed}))
        return self._built[1]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (batch, tokens) or (tokens,), int64. Returns logits, (batch, tokens, vocabulary), float32 or, of a float64
        model, float64.

        Raises:
            InvalidError: E_VALUE, E_SHAPE, E_DTYPE for ids that are none, or parameters in float16.
        """
        return self.transformer().logits(ids)

    def save(self, folder: Path) -> None:
        """Writes a new folder, a MODEL for every command. E_CONFIG for a model of another family."""
        tensors = {name: p.detach() for name, p in self.named_parameters(remove_duplicate=False)}
        _scalevec.save_model(self.spec.config(), tensors, os.fspath(folder))

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        tensors = {name: p.detach().clone() for name, p in self.named_parameters(remove_duplicate=False)}
        made = Module(self.spec, {**tensors, **self._fixed})
        memo[id(self)] = made
        for name, p in made.named_parameters():
            p.requires_grad_(self.get_parameter(name).requires_grad)
        return made.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("scalevec.Module is not pickled: save(folder) and Module.open(folder), or its state_dict()")


def _are_same(
    before: list[tuple[torch.Tensor, int, torch.dtype]], now: list[tuple[torch.Tensor, int, torch.dtype]]
) -> bool:
    return len(before) == len(now) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before, now, strict=True))
