"""Models that were made here: saved, opened, watched, made plain, edited, and exported as a Llama.

Weights are drawn by torch. What vectors are is computed again from the tensors by the paper's formulas, and what an
exported Llama computes is said by transformers.
"""

import contextlib
import io
import json
import re
import types

import h5py
import numpy as np
import pytest
import scalevec as sv
import torch
from conftest import write_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scalevec import _scalevec, cli

# Embedding and head are read and written in more than one piece.
SIZES = {"vocabulary": 6000, "width": 48, "layers": 3, "head_dim": 12, "kv_heads": 2, "inner": 80, "context": 128}
MIXTURE = {"experts": 4, "active": 2, "expert_inner": 20}
FOLDS = ["standard", "removal", "hg", "hg[q,up]", "ap", "dp", "dp[o,down]", "hg+dp+or", "or", "er", "hg+ap+er",
         "hg[k,gate]+dp[q,head]+or-input"]  # fmt: skip


def drawn(config, seed=0):
    """Tensors of a model; vectors and coefficients off their start, so that nothing is 1 or 0 by chance."""
    random = torch.Generator().manual_seed(seed)
    slots = {}
    for slot, shape in _scalevec.tensor_slots(config).items():
        values = torch.randn(shape, generator=random)
        if slot.endswith(".beta"):
            slots[slot] = (0.1 if "exponential" in config else 0.9) + 0.1 * values
        elif len(shape) == 1:
            slots[slot] = 1.1 + 0.3 * values
        else:
            slots[slot] = values * (0.3 if slot == "embed.weight" else 1.2 / shape[-1] ** 0.5)
    return slots


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """own("hg+or", tied_head=1): the folder of a model, made once."""
    made = {}

    def make(strategy, *, weights=None, **sizes):
        key = (strategy, weights, *sizes.items())
        if key not in made:
            config = _scalevec.make_config(strategy, "nano", {**SIZES, **sizes})
            folder = tmp_path_factory.mktemp("own") / "model"
            extra = tmp_path_factory.mktemp("extra")
            write_tokenizer(extra)
            _scalevec.save_model(
                config, drawn(config), folder, weights=weights, files=[extra / "tokenizer.json"],
                metadata={"note": "kept"},
            )  # fmt: skip
            made[key] = folder
        return made[key]

    return make


def effective(tensors, address, form="or"):
    """A vector by the paper's formulas, in float64."""
    if f"{address}.weight" in tensors:
        return tensors[f"{address}.weight"].double().numpy()
    alpha, beta = tensors[f"{address}.alpha"].double().numpy(), float(tensors[f"{address}.beta"])
    if form == "er":
        return np.exp(beta) * np.exp(alpha - alpha.mean())
    return beta * np.sqrt(len(alpha)) * alpha / np.linalg.norm(alpha)


def command(*words):
    """The command line, in this process: exit status, and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(word) for word in words])
    return types.SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def refused(call, code, *words, kind=ValueError):
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return caught.value


IDS = torch.randint(0, SIZES["vocabulary"], (2, 40), generator=torch.Generator().manual_seed(1))


# Saved and opened


@pytest.mark.parametrize("strategy", ["removal", "hg+dnp+or", "ap+er", "gemma"])
def test_inspect(own, strategy):
    folder = own(strategy)
    tensors = load_file(folder / "model.safetensors")
    assert set(tensors) == set(_scalevec.tensor_slots((folder / "config.json").read_text()))
    done = command("inspect", folder, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert bool(rows) == (strategy != "removal")
    for row in rows:
        g = effective(tensors, row["address"], form=strategy[-2:])
        assert row["native"] in tensors
        assert row["width"] == len(g)
        assert row["mean"] == pytest.approx(g.mean(), rel=1e-12)
        assert row["max"] == pytest.approx(g.max(), rel=1e-12)
    model = sv.load(folder)
    assert (model.family, model.container) == ("scalevec", "safetensors")
    for site in model.checkpoint.sites:
        g = model.scales[site.address]
        assert np.allclose(model.checkpoint.effective(site), g.effective, rtol=1e-13, atol=0)
        assert model.checkpoint.digest(site) == _scalevec.read_scales(model.checkpoint).base_digest(g.index)


def test_save_keeps_what_is_given(own, tmp_path):
    config = _scalevec.make_config("hg+or", "nano", SIZES)
    slots = drawn(config)
    slots["final_norm.alpha"] = slots["final_norm.alpha"].double().requires_grad_()
    slots["final_norm.beta"] = slots["final_norm.beta"].double()
    _scalevec.save_model(config, slots, tmp_path / "m", weights="bfloat16", metadata={"step": "7"})
    stored = load_file(tmp_path / "m" / "model.safetensors")
    for name, tensor in slots.items():
        expected = tensor.detach().bfloat16() if tensor.dim() == 2 else tensor.detach()
        assert stored[name].dtype == expected.dtype and torch.equal(stored[name], expected), name
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}
    assert (own("or") / "tokenizer.json").is_file()
    # Nothing is ever written over, and nothing is left of what was refused.
    before = (tmp_path / "m" / "config.json").read_bytes()
    refused(lambda: _scalevec.save_model(config, slots, tmp_path / "m"), "E_PATH", kind=OSError)
    assert (tmp_path / "m" / "config.json").read_bytes() == before
    missing = {name: tensor for name, tensor in slots.items() if name != "embed.weight"}
    refused(lambda: _scalevec.save_model(config, missing, tmp_path / "n"), "E_CONFIG", "embed.weight")
    wrong = {**slots, "embed.weight": slots["embed.weight"].T}
    refused(lambda: _scalevec.save_model(config, wrong, tmp_path / "n"), "E_SHAPE", "embed.weight")
    refused(lambda: _scalevec.save_model(config, slots, tmp_path / "n", weights="int8"), "E_DTYPE")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


# Made plain


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("strategy", ["hg+dp+or", "er", "hg[q,k]+dnp[v]+er"])
def test_materialise(own, strategy, tmp_path):
    folder = own(strategy)
    before = load_file(folder / "model.safetensors")
    model = sv.load(folder)
    report = model.materialise(tmp_path / "plain")
    after = load_file(tmp_path / "plain" / "model.safetensors")
    twin = sv.load(tmp_path / "plain")
    parts = {name.rsplit(".", 1)[0] for name in before if name.endswith(".alpha")}
    assert {v.address for v in report.vectors} == parts and parts
    with safe_open(tmp_path / "plain" / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["note"] == "kept"
    recorded = {entry["address"]: entry for entry in json.loads(metadata["scalevec.materialised"])}
    for vector in report.vectors:
        g, stored = (
            effective(before, vector.address, form=strategy[-2:]),
            after[f"{vector.address}.weight"].double().numpy(),
        )
        assert np.all(np.abs(stored - g) <= np.spacing(np.abs(g).astype(np.float32)) / 2 * (1 + 1e-6))
        assert vector.largest_rounding == pytest.approx(np.abs(stored - g).max(), rel=1e-6)
        assert vector.largest_rounding > 0
        entry = recorded[vector.address]
        assert entry["before"] == vector.before == model.scales[vector.address].digest
        assert entry["after"] == vector.after == twin.scales[vector.address].digest
        assert entry["from"] == vector.form == model.scales[vector.address].site.parametrisation
        assert twin.scales[vector.address].site.parametrisation == "plain"
    kept = {name for name in before if not name.endswith((".alpha", ".beta"))}
    assert kept == {name for name in after if name.rsplit(".", 1)[0] not in parts}
    assert all(bits(before[name]) == bits(after[name]) for name in kept)
    assert (tmp_path / "plain" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()

    # The same function: a vector is rounded at 2^-24, and so is each step of a forward in float32.
    ours, theirs = model.logits(IDS), twin.logits(IDS)
    assert 0 < (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()
    # Whoever watches sees the same too.
    address = report.vectors[0].address
    with model.taps(address, "scaled") as a, twin.taps(address, "scaled") as b:
        model.logits(IDS), twin.logits(IDS)
    assert torch.allclose(a[address].scaled[0], b[address].scaled[0], rtol=1e-4, atol=1e-4)
    gradients = [each.saliency(IDS[0]).gradient[address] for each in (model, twin)]
    assert np.allclose(*gradients, rtol=0, atol=1e-4 * np.abs(gradients[1]).max())
    assert np.abs(gradients[1]).max() > 0
    assert model.generate("a b a", max_tokens=12).ids == twin.generate("a b a", max_tokens=12).ids


def test_an_edit_needs_a_plain_vector(own, tmp_path):
    folder, address = own("hg+dp+or"), "layers.1.attn.input_norm[q]"
    advice = "scalevec materialise MODEL 'layers.1.attn.input_norm' -o DEST"
    model = sv.load(folder)
    for attempt in (
        lambda edit: edit.rescale(address, 0.5),
        lambda edit: edit.ablate(f"{address}@3"),
        lambda edit: edit.set("layers.1.attn.input_norm", 1.0),
    ):
        with model.edit() as edit:
            refused(lambda run=attempt, block=edit: run(block), "E_CONFIG", advice, address)
    done = command("edit", folder, "final_norm", "rescale", "0.5", "-o", tmp_path / "e.sv.json")
    assert done.returncode == 1 and "scalevec materialise MODEL 'final_norm' -o DEST" in done.stderr
    assert not (tmp_path / "e.sv.json").exists()

    done = command("materialise", folder, "layers.1.attn.input_norm", "-o", tmp_path / "plain")
    assert done.returncode == 0, done.stderr
    assert "plain now: 3 of 32 vectors" in done.stdout  # ten a layer, and two of the head
    plain = sv.load(tmp_path / "plain")
    forms = {g.address: g.site.parametrisation for g in plain.scales}
    assert sorted(a for a, form in forms.items() if form == "plain") == [
        f"layers.1.attn.input_norm[{branch}]" for branch in "kqv"
    ]
    with plain.edit() as edit:
        edit.rescale(address, 0.5)
        change = sv.measure(plain, IDS.flatten().numpy(), context=40)
        edit.save(tmp_path / "e.sv.json")
    assert change.kl.value > 1e-6 and change.control.largest_difference == 0
    change.save(tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:  # vectors with components among them
        expected = np.concatenate([plain.scales[a].effective for a in forms])
        assert np.array_equal(file["scales/effective"][:], expected)
        assert len(file["scales/stored"]) == len(expected)
    sv.export(plain, tmp_path / "e.sv.json", tmp_path / "edited")
    edited = sv.load(tmp_path / "edited")
    assert np.array_equal(edited.scales[address].effective, plain.scales[address].effective * 0.5)
    sv.revert(edited, tmp_path / "e.sv.json", tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()


def test_materialise_refusals(own, tmp_path):
    model, there = sv.load(own("hg+or")), tmp_path / "plain"
    refused(
        lambda: model.materialise(there, "layers.0.attn.input_norm[q]"),
        "E_ADDR",
        "[k]",
        "means them all",
        kind=IndexError,
    )
    refused(lambda: model.materialise(there, "final_norm@3"), "E_ADDR", "as a whole", kind=IndexError)
    refused(lambda: model.materialise(there, "layers.9.*"), "E_ADDR", kind=IndexError)
    refused(lambda: sv.load(own("hg+dp")).materialise(there), "E_NO_EFFECT", "plain already")
    half = sv.load(own("hg+dp+or"))
    half.materialise(tmp_path / "half", "final_norm")
    refused(lambda: sv.load(tmp_path / "half").materialise(there, "final_norm"), "E_NO_EFFECT")
    again = sv.load(tmp_path / "half").materialise(there, "role:output")
    with safe_open(there / "model.safetensors", "pt") as file:  # both are told
        assert len(json.loads(file.metadata()["scalevec.materialised"])) == 1 + len(again.vectors)
    refused(lambda: half.materialise(there), "E_PATH", kind=OSError)
    plain = sv.load(there)
    plain.journal  # noqa: B018
    with plain.edit() as edit:
        edit.rescale("final_norm", 0.5)
        refused(lambda: plain.materialise(tmp_path / "x", "role:input"), "E_STATE", "export the edit first")
        refused(lambda: plain.export_as("llama", tmp_path / "x"), "E_STATE", "export the edit first")
    # alpha = 0 has no direction.
    tensors = load_file(own("or") / "model.safetensors")
    tensors["final_norm.alpha"].zero_()
    zero = tmp_path / "zero"
    zero.mkdir()
    save_file(tensors, zero / "model.safetensors", {"format": "pt"})
    (zero / "config.json").write_bytes((own("or") / "config.json").read_bytes())
    refused(lambda: sv.load(zero).materialise(tmp_path / "x"), "E_VALUE", "final_norm", "channel 0")
    assert not (tmp_path / "x").exists()


def test_a_model_as_one_file(own, tmp_path, monkeypatch):
    monkeypatch.chdir(own("hg+dp+or"))
    for words in (["materialise", "model.safetensors", "final_norm"], ["export", "model.safetensors", "--as", "llama"]):
        done = command(*words, "-o", tmp_path / words[0])
        assert done.returncode == 0, done.stderr
        assert (tmp_path / words[0] / "tokenizer.json").is_file()


# As a Llama


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
    assert done.returncode == 1 and "E_VALUE" in done.stderr
    done = command("export", tiny_models["llama"].file, "--as", "llama", "-o", tmp_path / "x")
    assert done.returncode == 1 and "that scalevec trained" in done.stderr
    done = command("export", own("hg+dp"), "--as", "llama", "-o", tmp_path / "x")
    assert done.returncode == 0, done.stderr
    said = re.search(r"16 linear maps .* moved by at most (\S+) of itself \(\S+\.weight\)", done.stdout)
    assert said and 3e-8 < float(said[1]) <= 6e-8  # 2^-25, 2^-24
    done = command("export", own("hg+dp"), "--as", "llama", "-o", tmp_path / "x")
    assert done.returncode == 1 and "E_PATH" in done.stderr
