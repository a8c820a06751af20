"""Mixtures of experts against transformers' blocks, which route in float32 whatever the weights' dtype."""

import json

import pytest
import scalevec as sv
import torch
import transformers
from safetensors.torch import save_file

WIDTH, HEADS, HEAD_DIM, INNER, EXPERTS, ACTIVE, VOCABULARY = 24, 4, 6, 10, 6, 3, 50
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "num_experts_per_tok": ACTIVE,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.5,
    "experts_implementation": "eager",  # the grouped one has no float64
}


def mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(num_local_experts=EXPERTS, **COMMON))


def qwen3_moe(norm_topk_prob):
    more = {"num_experts": EXPERTS, "moe_intermediate_size": INNER, "norm_topk_prob": norm_topk_prob}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**more, **COMMON))


def norm(width):
    words = {"statistics": "rms", "eps": 1e-5, "group": width, "width": width, "parametrisation": "plain"}
    return {**words, "offset": 0.0, "bias": False}


def linear(inputs, outputs, output=None):
    return {"in": inputs, "out": outputs, "bias": False, "own_vector": False, "output": output}


def our_config(qk_norm, renormalise):
    of_head = norm(HEAD_DIM) if qk_norm else None
    rope = {"base": 100.0, "dimensions": HEAD_DIM, "pairing": "halves", "scaling": "none"}
    attn = {"heads": HEADS, "kv_heads": 2, "head_dim": HEAD_DIM, "scale": HEAD_DIM**-0.5, "window": 0, "rope": rope}
    attn["q"] = linear(WIDTH, HEADS * HEAD_DIM, of_head)
    attn["k"] = linear(WIDTH, 2 * HEAD_DIM, of_head)
    attn["v"] = linear(WIDTH, 2 * HEAD_DIM)
    attn["o"] = linear(HEADS * HEAD_DIM, WIDTH)
    mixture = {"experts": EXPERTS, "active": ACTIVE, "renormalise": renormalise, "router": linear(WIDTH, EXPERTS)}
    mixture |= {"gate": linear(WIDTH, INNER), "up": linear(WIDTH, INNER), "down": linear(INNER, WIDTH)}
    none = linear(0, 0)
    mlp = {"activation": "silu", "gate": none, "up": none, "down": none, "mixture": mixture}
    layer = {"attn_input": norm(WIDTH), "attn": attn, "attn_output": None}
    layer |= {"mlp_input": norm(WIDTH), "mlp": mlp, "mlp_output": None}
    out = {"model_type": "scalevec", "schema": 1, "vocabulary": VOCABULARY, "width": WIDTH, "context": 64}
    out |= {"embedding_scale": 1.0, "layers": [{"count": 2, "layer": layer}], "final_norm": norm(WIDTH)}
    return out | {"tied_head": False, "head": linear(WIDTH, VOCABULARY)}


NAMES = {
    "model.embed_tokens": "embed",
    "model.norm": "final_norm",
    "lm_head": "head",
    "input_layernorm": "attn.input_norm",
    "post_attention_layernorm": "mlp.input_norm",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.experts.down_proj": "mlp.experts.down.weight",
    "self_attn.": "attn.",
    "_proj.weight": ".weight",
    "model.layers": "layers",
}


def our_tensors(theirs):
    out = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if name.endswith("gate_up_proj"):
            gate, up = tensor.chunk(2, 1)
            out[name.replace("gate_up_proj", "gate.weight")] = gate.contiguous()
            out[name.replace("gate_up_proj", "up.weight")] = up.contiguous()
        else:
            out[name] = tensor.contiguous()
    return out


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen3_moe, bare probabilities"])
def test_transformers(family, tmp_path):
    torch.manual_seed(3)
    theirs = (mixtral() if family == "mixtral" else qwen3_moe(family == "qwen3_moe")).double().eval()
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if "norm" in name:
                tensor.add_(torch.randn_like(tensor), alpha=0.3)
            elif "mlp.gate." in name:  # qwen3's routers start at zero
                tensor.normal_(0.0, 0.5)
    (tmp_path / "config.json").write_text(json.dumps(our_config(family != "mixtral", "bare" not in family)))
    save_file(our_tensors(theirs), tmp_path / "model.safetensors")
    ours = sv.load(tmp_path, dtype="float64").transformer

    ids = torch.randint(VOCABULARY, (3, 20))
    with torch.no_grad():
        expected, found = theirs(ids).logits, ours.logits(ids)
        # Probabilities of float32: some 1e-7, through two layers.
        assert float((found - expected).abs().max()) < 3e-6 * float(expected.abs().max())
        cache = sv.KvCache()
        parts = [ours.logits(part, cache) for part in ids[:1].split([7, 1, 1, 11], 1)]
        assert float((torch.cat(parts, 1) - expected[:1]).abs().max()) < 3e-6 * float(expected.abs().max())
