"""Trainings small enough for a test: ours, and a transformers Llama in a PyTorch loop."""

from __future__ import annotations

import os
import pathlib

import h5py
import numpy as np
import pytest
import scalevec as sv
import torch
from scalevec import _scalevec as core

TINY = """
[model]
preset = "nano"
width = 32
layers = 2
head_dim = 8
{model}strategy = "{strategy}"
[data]
vocabulary = 37
context = 16
batch = 4
[optimizer]
rule = "{rule}"
learning_rate = 0.01
clip = 0.0
{optimizer}
[schedule]
warmup = {warmup}
[train]
steps = {steps}
validate_every = 3
{train}[trace]
every = {every}
"""

# A router over five experts, of which a batch of 64 tokens leaves none out, beside a shared one.
MIXTURE = "experts = 5\nactive = 2\nexpert_inner = 12\n"


def named(model: str) -> str:
    """In a test's name."""
    return "mixture" if MIXTURE in model else model or "dense"


def experiment(
    strategy: str = "hg+dp+or",
    rule: str = "adamw",
    optimizer: str = "",
    steps: int = 6,
    every: int = 0,
    train: str = "",
    model: str = "",
):
    return core.Experiment.parse(
        TINY.format(
            strategy=strategy, rule=rule, optimizer=optimizer, steps=steps, warmup=min(2, steps - 1), every=every,
            train=train, model=model,
        )
    )  # fmt: skip


def in_full(everything, some):
    """The numbers of a run that reaches those of the promises (SCALEVEC_FULL=1), else fewer."""
    return everything if os.environ.get("SCALEVEC_FULL") == "1" else some


def masters(training) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in training.tensors.items() if "/" not in name}


def everything(training) -> dict[str, torch.Tensor]:
    """Masters and the optimizer's state."""
    return {name: t.clone() for name, t in training.tensors.items()}


class Recorded:
    """A run in `folder`, and of each step its tensors (`states`, one more), gradients and learning rate."""

    def __init__(self, training, folder: pathlib.Path, state_of=masters) -> None:
        self.training, self.states, self.gradients, self.rates = training, [state_of(training)], [], []

        def on_step(event) -> bool:
            self.states.append(state_of(training))
            self.gradients.append({slot: g.clone() for slot, g in training.gradients.items()})
            self.rates.append(event["learning_rate"])
            return False

        self.ended = core.run_training(training, folder, resume=False, command="t", on_step=on_step)
        self.group_of = {slot: group for group in training.groups for slot in group["slots"]}


def magnitude_direction(alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return beta * alpha / alpha.square().mean().sqrt()


def exponential(alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return torch.exp(alpha - alpha.mean() + beta)


def effective(tensors: dict[str, torch.Tensor], address: str, compose=magnitude_direction) -> np.ndarray:
    if address + ".weight" in tensors:
        return tensors[address + ".weight"].double().numpy()
    return compose(tensors[address + ".alpha"].double(), tensors[address + ".beta"].double()).numpy()


def tiny_llama(seed: int = 0):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def tiny_module(strategy: str, **sizes: int) -> sv.Module:
    """Its vectors, plain or of components, differ from 1 by channel and site."""
    sizes = {
        "vocabulary": 41,
        "width": 16,
        "layers": 2,
        "head_dim": 8,
        "kv_heads": 1,
        "inner": 20,
        "context": 16,
    } | sizes
    model = sv.Module.new(strategy, **sizes)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1 and len(p) > 1:
                p.add_(torch.empty_like(p).uniform_(-0.4, 0.4, generator=random))
            elif len(p) == 1:
                p.mul_(0.8)
            else:
                p.mul_(3)
    return model


def loss_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


class Ids(torch.utils.data.Dataset):
    """For transformers' Trainer on a tiny_llama."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(10) * (i + 1)) % 41
        return {"input_ids": ids, "labels": ids}


def final_norm_tracer(path, stored: torch.Tensor, *maps: torch.Tensor, inputs: bool = False):
    """A tracer of one vector, with a row for every step, whose view the test gives."""
    vector = core.TracedVector(
        address="final_norm", native="norm.weight", role="final", offset=0.0, eps=1e-6, stored=stored,
        consumers=[("head", w) for w in maps],
    )  # fmt: skip
    return core.Tracer(
        path, [vector], command="t", every=1, gauge_tolerance=0.0, inputs=inputs, curvature=False, after=None
    )


def loop(model, optimizers, tracer=None, steps: int = 4, clear_first: bool = False) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(0, 41, (3, 12), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if clear_first:
            model.zero_grad(set_to_none=False)
        if tracer is not None:
            tracer.step()
        model.zero_grad()


def optimizers_of(model, rule: str) -> list[torch.optim.Optimizer]:
    if rule == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)]
    if rule == "sgd":
        return [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.0, weight_decay=0.1)]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.01),
    ]


def assert_same_rows(one: pathlib.Path, other: pathlib.Path) -> None:
    with h5py.File(one) as a, h5py.File(other) as b:
        names = {n for n in a["trace"] if isinstance(a["trace"][n], h5py.Dataset)}
        assert len(names) > 5
        for name in names - {"header", "tokens_per_second"}:
            assert a["trace"][name][()].tobytes() == b["trace"][name][()].tobytes(), name
