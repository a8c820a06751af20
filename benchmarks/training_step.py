"""A training step: ours beside the same model in eager PyTorch, and compiled by torch.compile. Goal G13: at least 1.15 times its steps on the CPU."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import scalevec as sv
import torch
import transformers

from .harness import Figure, interleave, micro, report


def peer_of(training: sv._scalevec.Training, folder: pathlib.Path) -> torch.nn.Module:
    """transformers' Llama with the same weights."""
    training.save_model(folder / "model")
    sv.load(folder / "model").export_as("llama", folder / "llama")
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder / "llama", dtype=torch.float32, attn_implementation="sdpa"
    ).train()


figures = []
with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    training = sv._scalevec.Training(micro(batch=8))
    peer = peer_of(training, folder)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    corpus = sv.Corpus.synthetic(vocabulary=4096, order=1, concentration=0.1, seed=0)
    ids = corpus.read("validation", list(range(8)), 256)
    with torch.no_grad():
        logits = peer(input_ids=ids[:4, :-1]).logits
        theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:4, 1:].flatten()).item()
    same = abs(theirs - training.validate())

    def step(model: Callable[..., Any]) -> Callable[[], None]:
        def take() -> None:
            out = model(input_ids=ids[:, :-1]).logits
            torch.nn.functional.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return take

    pair = interleave(training.advance, step(peer), pairs=9, warmup=2)
    compiled = interleave(training.advance, step(torch.compile(peer)), pairs=9, warmup=2)
    parameters = sum(p.numel() for p in peer.parameters())
    figures += [
        Figure("parameters", parameters / 1e6, "million"),
        Figure("loss of the same windows, difference", same, "nats", "< 1e-5", same < 1e-5),
        Figure("our step, 2,048 predictions, CPU time", pair.ours, "s"),
        Figure("eager PyTorch, CPU time", pair.peer, "s"),
        Figure(
            "eager / ours, median of 9 pairs", 1 / pair.ratio, "x", ">= 1.15", 1 / pair.ratio >= 1.15,
            f"{1 / pair.high:.2f} to {1 / pair.low:.2f}, wall-clock {1 / pair.wall_ratio:.2f}",
        ),
        Figure("torch.compile, CPU time", compiled.peer, "s"),
        Figure(
            "torch.compile / ours, median of 9 pairs", 1 / compiled.ratio, "x",
            note=f"{1 / compiled.high:.2f} to {1 / compiled.low:.2f}",
        ),
    ]  # fmt: skip

report("training_step", figures)
