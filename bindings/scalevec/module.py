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
        for slot, tensor in tensors.items():
            *path, leaf = slot.split(".")
            inner: torch.nn.Module = self
            for name in path:
                if name not in inner._modules:
                    inner.add_module(name, torch.nn.Module())
                inner = inner._modules[name]  # type: ignore[assignment]
            inner.register_parameter(leaf, torch.nn.Parameter(tensor))
        self._built: tuple[list[int], _scalevec.Transformer] | None = None

    @classmethod
    def new(cls, strategy: str = "unified", preset: str = "nano", *, seed: int = 0, **sizes: int) -> Module:
        """A model to train from the start, as `scalevec train` draws it.

        Args:
            strategy: words of docs/experiment_files.md, "hg+dnp+or".
            preset: the sizes, "nano", "micro", "0.12b", ...
            seed: of the weights, the same for every strategy.
            sizes: of the preset's to change: vocabulary, width, layers, head_dim, kv_heads, inner, context, ...
        """
        spec = _scalevec.ModelSpec(_scalevec.make_config(strategy, preset, sizes))
        return cls(spec, spec.draw(seed))

    @classmethod
    def open(cls, path: Path) -> Module:
        """A model to train on, in float32: a GGUF file, a safetensors file or a folder."""
        checkpoint = _scalevec.Checkpoint(os.fspath(path))
        return cls(_scalevec.ModelSpec(checkpoint), _scalevec.read_tensors(checkpoint))

    def transformer(self) -> _scalevec.Transformer:
        """What computes, around the parameters as they are."""
        tensors = dict(self.named_parameters())
        places = [tensor.data_ptr() for tensor in tensors.values()]
        if self._built is None or self._built[0] != places:  # moved to a device, or to another dtype
            self._built = (places, self.spec.transformer(tensors))
        return self._built[1]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (batch, tokens) int64. Returns logits, (batch, tokens, vocabulary)."""
        return self.transformer().logits(ids)

    def save(self, folder: Path) -> None:
        """Writes a new folder, a MODEL for every command. E_CONFIG for a model of another family."""
        tensors = {name: parameter.detach() for name, parameter in self.named_parameters()}
        _scalevec.save_model(self.spec.config(), tensors, os.fspath(folder))

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("scalevec.Module is not pickled: save(folder) and Module.open(folder), or its state_dict()")
