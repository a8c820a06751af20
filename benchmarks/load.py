"""Loading SmolLM2's GGUF into float32: ours beside the `gguf` package's dequantisation and beside transformers.

Goal: at least 4 times faster than dequantising every tensor with `gguf`. The file is in the page cache.
"""

import time

import gguf
import scalevec as sv
import torch
import transformers

from .harness import Figure, interleave, report, smollm2

path = smollm2()
tensors = gguf.GGUFReader(path).tensors  # reading the header is not counted against the peer


def ours() -> object:
    return sv.load(path).transformer


def peer() -> object:
    return [gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors]


pair = interleave(ours, peer, pairs=5)
start = time.process_time()
transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
theirs = time.process_time() - start

report(
    "load",
    [
        Figure("ours, to a model that runs, CPU time", pair.ours, "s"),
        Figure("gguf package, dequantising every tensor, CPU time", pair.peer, "s"),
        Figure(
            "gguf package / ours, wall-clock, median of 5 pairs",
            1 / pair.wall_ratio,
            "x",
            ">= 4",
            pair.wall_ratio <= 0.25,
        ),
        Figure("gguf package / ours, CPU time", 1 / pair.ratio, "x"),
        Figure("transformers / ours, CPU time, once", theirs / pair.ours, "x"),
    ],
)
