"""A training step: ours beside the same model in eager PyTorch, and what the tracer adds to it.

Goals: G13, at least 1.15 times the steps of eager PyTorch on the CPU; G7, tracing every step costs at most 0.3 % of a
step of 2,048 predictions and 2 % of one of 256, and no more than half of eager statistics.
"""

import itertools
import pathlib
import statistics
import tempfile
import time

import scalevec as sv
import torch
import transformers

from .harness import Figure, interleave, report

EXPERIMENT = """
[model]
preset = "micro"
[data]
vocabulary = 4096
context = 256
batch = {batch}
[train]
steps = {steps}
validate_every = 0
validation_windows = 4
[trace]
every = {every}
"""


def experiment(batch: int, steps: int = 1000, every: int = 0) -> sv.Experiment:
    return sv.Experiment.parse(EXPERIMENT.format(batch=batch, steps=steps, every=every))


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
    training = sv._scalevec.Training(experiment(8))
    peer = peer_of(training, folder)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    corpus = sv.Corpus.synthetic(vocabulary=4096, order=1, concentration=0.1, seed=0)
    ids = corpus.read("validation", list(range(8)), 256)
    with torch.no_grad():
        logits = peer(input_ids=ids[:4, :-1]).logits
        theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:4, 1:].flatten()).item()
    same = abs(theirs - training.validate())

    def eager() -> None:
        out = peer(input_ids=ids[:, :-1]).logits
        torch.nn.functional.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    pair = interleave(training.advance, eager, pairs=9, warmup=2)
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
    ]  # fmt: skip

    for batch, goal in ((8, 0.003), (1, 0.02)):
        traced = sv._scalevec.Training(experiment(batch, steps=60, every=2))
        marks: list[float] = [time.process_time()]
        sv._scalevec.run_training(
            traced, folder / f"run{batch}", resume=False, command="benchmark",
            on_step=lambda event, marks=marks: marks.append(time.process_time()) is not None,
        )  # fmt: skip
        steps = [b - a for a, b in itertools.pairwise(marks)]
        # Step i + 1 is traced where it is even; the first is, and warms up; the last validates.
        pairs = [(steps[i + 1] - steps[i], steps[i]) for i in range(8, 56, 2)]
        share = statistics.median(more / plain for more, plain in pairs)
        maps = [t for n, t in traced.tensors.items() if "/" not in n and t.ndim == 2 and "embed" not in n]
        gradients = [g for n, g in traced.gradients.items() if g.ndim == 2 and "embed" not in n]

        def statistics_by_operators(maps=maps, gradients=gradients) -> None:
            for w, g in zip(maps, gradients, strict=True):
                (w * w).sum(0), (w * g).sum(0), (g * g).sum(0)

        def histograms(maps=maps, gradients=gradients) -> None:
            for t in maps + gradients:
                torch.histc(t, bins=64)

        both = interleave(statistics_by_operators, histograms, pairs=9, warmup=1)
        plain = statistics.median(p for _, p in pairs)
        tokens = 256 * batch
        figures += [
            Figure(
                f"tracing every step, {tokens:,} predictions, share of a step", 100 * share, "%",
                f"<= {100 * goal:g}", share <= goal, "all metrics and channels, writer included",
            ),
            Figure("  three column sums by eager operators", 100 * both.ours / plain, "%"),
            Figure("  histograms of weights and gradients", 100 * both.peer / plain, "%"),
            Figure("  tracing / eager operators", share * plain / both.ours, "x", "<= 0.5", share * plain / both.ours <= 0.5),
        ]  # fmt: skip

report("training_step", figures)
