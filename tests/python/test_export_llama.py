"""Models of ours exported as a Llama: what it computes is said by transformers, what is folded by float64 products."""

import json
import re

import numpy as np
import pytest
import scalevec as sv
import torch
from own_models import IDS, MIXTURE, command, effective, refused
from safetensors.torch import load_file

FOLDS = ["standard", "removal", "hg", "hg[q,up]", "ap", "dp", "dp[o,down]", "hg+dp+or", "or", "er", "hg+ap+er",
         "hg[k,gate]+dp[q,head]+or-input"]  # fmt: skip


@pytest.mark.parametrize("strategy", FOLDS)
def test_export_as_llama(own, strategy, tmp_path):
    import transformers

    folder = own(strategy)
    model = sv.load(folder)
    report = model.export_as("llama", tmp_path / "llama")
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "llama", dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert not any(loading.values()), loading
    ours = model.logits(IDS)
    with torch.no_grad():
        reference = theirs(IDS).logits
    largest = float(reference.abs().max())
    worst = float((ours - reference).abs().max()) / largest
    print(f"{strategy}: {worst:.2e} of the largest logit; rounding {report.largest_rounding:.2e}")
    # A folded entry is off by 2^-24 = 6e-8 of itself, as is each step of either forward. A path through three layers
    # has some 30 such steps, whose errors norms and an even softmax keep relative: 2e-6; the largest of 480,000, five times.
    assert worst <= 1e-5
    assert sv.load(tmp_path / "llama").family == "llama"
    with torch.no_grad():
        read_back = sv.load(tmp_path / "llama").logits(IDS)
    assert float((read_back - reference).abs().max()) <= 1e-5 * largest
    assert report.largest_rounding <= 2**-24
    assert (report.largest_rounding == 0) == (strategy in ("standard", "removal"))
    assert (tmp_path / "llama" / "tokenizer.json").is_file()
    assert (report.folded > 0) == (strategy not in ("standard", "removal", "or", "er"))


def test_export_folds_columns_and_rows(own, tmp_path):
    """Every entry is the float64 product of what was stored, rounded once."""
    tensors = load_file(own("hg[q]+dp[q,o]+or") / "model.safetensors")
    command("export", own("hg[q]+dp[q,o]+or"), "--as", "llama", "-o", tmp_path / "llama")
    theirs = load_file(tmp_path / "llama" / "model.safetensors")
    at, there = "layers.2.attn.", "model.layers.2.self_attn."
    own_q, shared = effective(tensors, f"{at}input_norm[q]"), effective(tensors, f"{at}input_norm")
    rows = {"q": effective(tensors, f"{at}q.output_scale"), "o": effective(tensors, f"{at}o.output_scale")}
    columns = {"q": own_q, "k": shared, "v": shared}
    for name in "qkvo":
        exact = tensors[f"{at}{name}.weight"].double().numpy()
        exact = exact * rows.get(name, np.ones(1))[:, None] * columns.get(name, np.ones(1))
        found = theirs[f"{there}{name}_proj.weight"].numpy()
        assert np.array_equal(found, exact.astype(np.float32)) or np.allclose(found, exact, rtol=2**-24 * 1.01, atol=0)
    assert torch.equal(theirs["model.layers.2.input_layernorm.weight"], torch.ones(48))
    kept = effective(tensors, "layers.2.mlp.input_norm")
    assert np.allclose(theirs["model.layers.2.post_attention_layernorm.weight"], kept, rtol=2**-24 * 1.01, atol=0)
    assert torch.equal(theirs["model.layers.2.mlp.up_proj.weight"], tensors["layers.2.mlp.up.weight"])


def test_export_with_tied_head_and_bfloat16(own, tmp_path):
    import transformers

    model = sv.load(own("hg+or", tied_head=1, weights="bfloat16"))
    model.export_as("llama", tmp_path / "llama")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert theirs.dtype == torch.float32 and theirs.lm_head.weight is theirs.model.embed_tokens.weight
    with torch.no_grad():
        reference = theirs(IDS).logits
    assert float((model.logits(IDS) - reference).abs().max()) <= 1e-5 * float(reference.abs().max())


@pytest.mark.parametrize(
    ("strategy", "address", "words"),
    [
        ("hg+dnp", "layers.0.attn.q.output_norm", "folds, a norm (dnp) does not"),
        ("dnp[v]+or", "layers.0.attn.v.output_norm", "no weight can hold it"),
        ("dnp[head]", "lm_head.output_norm", "no weight can hold it"),
        ("gemma", "layers.0.attn.output_norm", "before the residual add"),
    ],
)
def test_export_refusals(own, strategy, address, words, tmp_path):
    error = refused(
        lambda: sv.load(own(strategy)).export_as("llama", tmp_path / "x"),
        "E_CONFIG",
        f"'{address}'",
        words,
        "Use the model as it is",
    )
    assert error.tensor == address
    done = command("export", own(strategy), "--as", "llama", "-o", tmp_path / "x")
    assert done.returncode == 1 and address in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_export_refuses_what_a_tied_head_would_change(own, tmp_path):
    model = sv.load(own("dp[head]", tied_head=1))
    error = refused(lambda: model.export_as("llama", tmp_path / "x"), "E_CONFIG", "the head is the embedding")
    assert error.tensor == "lm_head.output_scale"


def test_a_mixture_of_experts(own, tmp_path):
    folder = own("hg+or", **MIXTURE)
    model = sv.load(folder)
    report = model.materialise(tmp_path / "plain")
    assert {v.address for v in report.vectors} == {g.address for g in model.scales}
    assert len(report.vectors) > 3 * 6
    plain = sv.load(tmp_path / "plain")
    ours, theirs = model.logits(IDS), plain.logits(IDS)
    # A token near the border between two experts may be sent to the other; most are not.
    difference = (ours - theirs).abs().amax(-1) / ours.abs().max()
    assert float((difference <= 1e-5).float().mean()) > 0.95
    with plain.edit() as edit:
        edit.rescale("layers.0.mlp.input_norm", 0.9)
        assert not torch.equal(plain.logits(IDS), theirs)
    error = refused(lambda: plain.export_as("llama", tmp_path / "x"), "E_CONFIG", "mixture of experts")
    assert error.tensor == "layers.0.mlp"


# One change to config.json each, of a model that can be exported as it stands.
LAYER = ("layers", 0, "layer")
CHANGES = [
    ((*LAYER, "attn", "window"), 8, "layers.0.attn", "window"),
    ((*LAYER, "attn", "scale"), 0.25, "layers.0.attn", "scales q . k"),
    ((*LAYER, "attn", "rope", "pairing"), "interleaved", "layers.0.attn", "rotary"),
    ((*LAYER, "attn", "rope", "dimensions"), 6, "layers.0.attn", "rotary"),
    ((*LAYER, "mlp", "activation"), "gelu_tanh", "layers.0.mlp", "SiLU"),
    ((*LAYER, "mlp_input", "eps"), 1e-6, "layers.0.mlp.input_norm", "epsilon"),
    ((*LAYER, "mlp_input", "statistics"), "layer", "layers.0.mlp.input_norm", "RMSNorm"),
    (("embedding_scale",), 2.0, "embed", "scaled"),
]


@pytest.mark.parametrize(("path", "value", "address", "word"), CHANGES)
def test_export_refuses_what_is_no_llama(own, path, value, address, word, tmp_path):
    config = json.loads((own("hg") / "config.json").read_text())
    at = config
    for key in path[:-1]:
        at = at[key]
    assert at[path[-1]] != value
    at[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((own("hg") / "model.safetensors").read_bytes())
    error = refused(lambda: sv.load(tmp_path).export_as("llama", tmp_path / "x"), "E_CONFIG", word)
    assert error.tensor == address


def test_export_command(own, tiny_models, tmp_path):
    for words in ([], ["--as", "llama", "--edit", "e.sv.json"]):
        done = command("export", own("hg"), *words, "-o", tmp_path / "x")
        assert done.returncode == 2 and "either --edit" in done.stderr
    done = command("export", own("hg"), "--as", "mamba", "-o", tmp_path / "x")
    assert done.returncode == 2 and "choose from llama" in done.stderr
    refused(lambda: sv.load(own("hg")).export_as("mamba", tmp_path / "x"), "E_VALUE")
    done = command("export", tiny_models["llama"].file, "--as", "llama", "-o", tmp_path / "x")
    assert done.returncode == 1 and "that scalevec trained" in done.stderr
    done = command("export", own("hg+dp"), "--as", "llama", "-o", tmp_path / "x")
    assert done.returncode == 0, done.stderr
    said = re.search(r"16 linear maps .* moved by at most (\S+) of itself \(\S+\.weight\)", done.stdout)
    assert said and 3e-8 < float(said[1]) <= 6e-8  # 2^-25, 2^-24
    done = command("export", own("hg+dp"), "--as", "llama", "-o", tmp_path / "x")
    assert done.returncode == 1 and "E_PATH" in done.stderr
