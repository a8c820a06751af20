"""Logits against transformers (sdpa): real models from GGUF in one uncut window, tiny random ones from safetensors."""

import pathlib
import pydoc_data.topics

import pytest
import scalevec as sv
import torch
from conftest import peer

TOKENS = 2048
DECODED = range(1015, 1039)  # past Gemma's window of 512, and past the place where a cache of it lets rows go


def kl_per_row(reference: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """KL(reference, ours) without cancellation: sum of p (e^d - 1 - d) with d = log q - log p, from the logits' difference."""
    p = reference.softmax(-1).double()
    p /= p.sum(-1, keepdim=True)  # 4e-5 off one in float32, over Gemma's 262,144 words
    difference = ours.double() - reference.double()
    d = difference - (p * difference.exp()).sum(-1, keepdim=True).log()
    return (p * (d.expm1() - d)).sum(-1)


def compare_real(path: pathlib.Path, theirs: torch.nn.Module) -> None:
    model = sv.load(path)
    prose = "\n".join(pydoc_data.topics.topics.values())
    ids = torch.tensor(model.tokenizer.encode(prose[:20_000])[:TOKENS])
    assert len(ids) == TOKENS
    ours = model.transformer
    with torch.no_grad():
        their_hidden = theirs.model(ids[None]).last_hidden_state[0]
        our_hidden = ours.hidden(ids)[0]
        worst, kl = 0.0, []
        for at in range(0, TOKENS, 64):  # all logits of Gemma would be 2 GB, twice
            rows = slice(at, at + 64)
            reference, logits = theirs.lm_head(their_hidden[rows]), ours.head(our_hidden[rows])
            worst = max(worst, float((reference - logits).abs().max()))
            kl.append(kl_per_row(reference, logits))
        mean_kl = float(torch.cat(kl).mean())
        print(f"{path.name}: max |difference| {worst:.2e}, mean KL {mean_kl:.2e} over {TOKENS} tokens")
        assert worst <= 2e-3
        assert mean_kl <= 1e-9

        cache = sv.KvCache()
        ours.hidden(ids[: DECODED.start], cache)
        steps = torch.cat([ours.logits(ids[i : i + 1], cache)[0] for i in DECODED])
        reference = theirs.lm_head(their_hidden[DECODED.start : DECODED.stop])
        worst, mean_kl = float((reference - steps).abs().max()), float(kl_per_row(reference, steps).mean())
        print(f"{path.name}: cached, max |difference| {worst:.2e}, mean KL {mean_kl:.2e}")
        assert worst <= 2e-3
        assert mean_kl <= 1e-9


def test_smollm2(smollm2_gguf, smollm2_peer):
    compare_real(smollm2_gguf, smollm2_peer)


def test_gemma3(gemma3_gguf):
    compare_real(gemma3_gguf, peer(gemma3_gguf))


FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]


@pytest.fixture
def tiny(tiny_models, request):
    made = tiny_models[request.param]
    torch.manual_seed(1)
    ids = torch.randint(160, (2, 40))
    with torch.no_grad():
        return made, ids, made.model(ids).logits


@pytest.mark.parametrize("tiny", FAMILIES, indirect=True)
@pytest.mark.parametrize("container", ["file", "shards"])
def test_tiny_models(tiny, container):
    made, ids, reference = tiny
    largest = float(reference.abs().max())
    model = sv.load(getattr(made, container))
    logits = model.transformer.logits(ids)
    assert float((logits - reference).abs().max()) <= 1e-4 * largest
    cache = sv.KvCache()
    lengths = [5] + [1] * 20 + [3, 12]
    parts = [model.transformer.logits(part, cache) for part in ids[:1].split(lengths, 1)]
    assert float((torch.cat(parts, 1) - reference[:1]).abs().max()) <= 1e-4 * largest


@pytest.mark.parametrize("tiny", FAMILIES, indirect=True)
def test_tiny_models_in_float64_and_bfloat16(tiny):
    import copy

    made, ids, reference = tiny
    with torch.no_grad():
        exact = copy.deepcopy(made.model).double()(ids).logits
    ours = sv.load(made.file, dtype="float64").transformer.logits(ids)
    assert ours.dtype == torch.float64
    # transformers takes its frequencies from float32 powers: an angle of 40 radians is off by a few 1e-6.
    assert float((ours - exact).abs().max()) <= 2e-5 * float(exact.abs().max())
    half = sv.load(made.file, dtype="bfloat16").transformer.logits(ids)
    assert half.dtype == torch.float32
    assert float((half - reference).square().mean().sqrt()) <= 0.05 * float(reference.square().mean().sqrt())


def test_a_wrong_epsilon_is_seen(tiny_models):
    """The tolerance of 1e-4 would catch it: the same comparison with another epsilon fails."""
    made = tiny_models["qwen3"]
    ids = torch.arange(40)[None]
    norm = made.model.model.layers[0].input_layernorm
    kept = norm.variance_epsilon
    try:
        norm.variance_epsilon = kept * 100
        with torch.no_grad():
            other = made.model(ids).logits
    finally:
        norm.variance_epsilon = kept
    logits = sv.load(made.file).transformer.logits(ids)
    assert float((logits - other).abs().max()) > 1e-4 * float(other.abs().max())


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_tiny_models_from_gguf(family, tmp_path):
    """Written by the gguf package under its own names, with vectors and biases that are not 1 and 0."""
    gguf, transformers = pytest.importorskip("gguf"), pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 160, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    }  # fmt: skip
    if family == "qwen3":
        config = transformers.Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=False)
    else:
        config = transformers.Qwen2Config(**sizes)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if p.ndim == 1:
                p.copy_((not name.endswith("bias")) + 0.3 * torch.randn_like(p))
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, family)
    for key, value in {
        "block_count": 3, "context_length": 256, "embedding_length": 32, "feed_forward_length": 64, "head_count": 4,
        "head_count_kv": 2, "layer_norm_rms_eps": config.rms_norm_eps, "vocab_size": 160,
        "rope_freq_base": config.rope_parameters["rope_theta"],
    }.items():  # fmt: skip
        getattr(writer, f"add_{key}")(value)
    if family == "qwen3":
        writer.add_key_length(16)
        writer.add_value_length(16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 3)
    for name, p in theirs.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), p.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = torch.arange(40)[None] * 3 % 160
    with torch.no_grad():
        reference = theirs(ids).logits
    model = sv.load(path)
    assert len(model.scales) == 7 + 6 * (family == "qwen3")
    assert (model.logits(ids) - reference).abs().max() <= 1e-4 * reference.abs().max()
    with model.edit() as edit:  # the vectors are those that count
        edit.ablate("layers.1.attn.*", "one")
        assert (model.logits(ids) - reference).abs().max() > 1e-2 * reference.abs().max()
