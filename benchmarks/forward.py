"""One forward of SmolLM2 on 512 tokens, all logits: ours beside transformers (sdpa), float32, the same threads.

Goal: at most 1.05 times its CPU time. bfloat16 beside it, with the KL that it costs.
"""

import pydoc_data.topics

import scalevec as sv
import torch
import transformers

from .harness import Figure, interleave, report, smollm2

TOKENS = 512

path = smollm2()
model = sv.load(path)
prose = "\n".join(pydoc_data.topics.topics.values())
ids = torch.tensor(model.tokenizer.encode(prose[:8000])[:TOKENS])[None]
peer = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
).eval()
half = sv.load(path, dtype="bfloat16")


def kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL(reference, other) over tokens, without cancellation."""
    log_p = reference.double().log_softmax(-1)
    d = other.double().log_softmax(-1) - log_p
    return float((log_p.exp() * (d.expm1() - d)).sum(-1).mean())


with torch.inference_mode():
    ours = interleave(
        lambda: model.transformer.logits(ids), lambda: peer(ids, use_cache=False).logits, pairs=11, warmup=2
    )
    reference = peer(ids, use_cache=False).logits
    difference = float((model.transformer.logits(ids) - reference).abs().max())
    narrow = interleave(lambda: half.transformer.logits(ids), lambda: model.transformer.logits(ids), pairs=3, warmup=1)
    cost = kl(reference, half.transformer.logits(ids))

report(
    "forward",
    [
        Figure("float32, 512 tokens, CPU time", ours.ours, "s"),
        Figure("transformers, sdpa, float32, CPU time", ours.peer, "s"),
        Figure(
            "ours / transformers, median of 11 pairs",
            ours.ratio,
            "x",
            "<= 1.05",
            ours.ratio <= 1.05,
            f"{ours.low:.2f} to {ours.high:.2f}, wall-clock {ours.wall_ratio:.2f}",
        ),
        Figure("largest difference of a logit", difference, "", "<= 2e-3", difference <= 2e-3),
        Figure(
            "bfloat16 / float32, ours",
            narrow.ratio,
            "x",
            note="fast only where the processor multiplies bfloat16 itself (AMX, AVX-512 BF16)",
        ),
        Figure("mean KL of bfloat16 from float32", cost, "nats"),
    ],
)
