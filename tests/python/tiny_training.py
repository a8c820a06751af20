"""A training small enough for a test."""

from __future__ import annotations

import torch
from scalevec import _scalevec as core

TINY = """
[model]
preset = "nano"
width = 32
layers = 2
head_dim = 8
strategy = "{strategy}"
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
warmup = 2
[train]
steps = {steps}
validate_every = 3
[trace]
every = {every}
"""


def experiment(strategy: str = "hg+dp+or", rule: str = "adamw", optimizer: str = "", steps: int = 6, every: int = 0):
    return core.Experiment.parse(
        TINY.format(strategy=strategy, rule=rule, optimizer=optimizer, steps=steps, every=every)
    )


def masters(training) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in training.tensors.items() if "/" not in name}
