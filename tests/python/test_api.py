"""The notebook's view: loading, the table of scales, logits, watching, generating, screening."""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import scalevec as sv
import torch

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]


@pytest.fixture(scope="module")
def llama(tiny_models):
    return sv.load(tiny_models["llama"].file)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["file", "shards"])
def test_scales_are_those_of_the_module(tiny_models, family, layout):
    """Effective values by native name, against transformers' own parameters and its `1 + weight` for Gemma."""
    tiny = tiny_models[family]
    model = sv.load(getattr(tiny, layout))
    parameters = dict(tiny.model.named_parameters())
    norms = {name for name in parameters if "norm" in name and name.endswith("weight")}
    assert {g.native for g in model.scales} == norms
    for g in model.scales:
        theirs = parameters[g.native].detach()
        assert torch.equal(g.stored, theirs)
        assert g.offset == (1.0 if family == "gemma3" else 0.0)
        assert np.array_equal(g.effective, theirs.double().numpy() + g.offset)
        assert (g.mean, g.min, g.max) == (g.effective.mean(), g.effective.min(), g.effective.max())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(tiny_models, family):
    tiny = tiny_models[family]
    model = sv.load(tiny.file)
    ids = torch.randint(0, 160, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = tiny.model(ids).logits
        ours = model.logits(ids)
    assert ours.shape == (2, 24, 160)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert torch.equal(model.logits(ids[0].tolist()), model.logits(ids[:1]))
    assert torch.equal(model.logits(ids.numpy()), model.logits(ids))


def test_inspecting_reads_no_weights_and_is_quick(smollm2_gguf):
    program = f"""
import re, time, torch
import scalevec as sv

def peak():  # not ru_maxrss, which begins with the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

before = peak()
start = time.perf_counter()
scales = sv.load({str(smollm2_gguf)!r}).scales
rows = [g.to_dict() for g in scales]
took = time.perf_counter() - start
print(took, peak() - before, len(rows), scales.entries)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    took, kilobytes, vectors, entries = out.stdout.split()
    assert float(took) < 1.0
    assert int(kilobytes) < 60_000  # the weights alone are 91 MB in the file, 538 MB in memory
    assert (int(vectors), int(entries)) == (61, 35136)


def test_table(llama):
    scales = llama.scales
    assert len(scales) == 7 and [g.address for g in scales][-1] == "final_norm"
    assert scales["layers.1.mlp.input_norm"].native == "model.layers.1.post_attention_layernorm.weight"
    assert scales["model.layers.1.post_attention_layernorm.weight"].address == "layers.1.mlp.input_norm"
    assert [link.branch for link in scales[0].consumers] == ["q", "k", "v"]
    assert [link.native for link in scales[1].consumers] == [
        "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight",
    ]  # fmt: skip
    assert scales[-1].role == "final" and scales[-1].layer is None and scales[2].layer == 1
    assert len(scales[1:3]) == 2 and "final_norm" in scales and "final_norm" not in scales[:2]
    text = repr(scales)
    assert text.count("\n") == 8 and "layers.2.attn.input_norm" in text and "7 scale vectors, 224 entries" in text
    assert scales._repr_html_().count("<tr>") == 8
    frame = scales.to_pandas()
    assert list(frame["address"]) == [g.address for g in scales]
    assert frame["consumers"][0] == "q,k,v" and frame["mean"][3] == pytest.approx(scales[3].mean, abs=0)
    row = json.loads(json.dumps(scales[0].to_dict()))
    expected = {"address", "native", "role", "kind", "offset", "eps", "width", "consumers", "mean", "min", "max"}
    assert expected <= set(row) and row["consumers"] == ["q", "k", "v"]
    for wrong in (7, -8):
        with pytest.raises(IndexError):
            scales[wrong]


def test_selecting(llama):
    scales = llama.scales
    picked = scales.select("layers.{0..1}.*.input_norm;final_norm@3,8:10")
    assert [(g.address, c) for g, c in picked] == [
        ("layers.0.attn.input_norm", None), ("layers.0.mlp.input_norm", None), ("layers.1.attn.input_norm", None),
        ("layers.1.mlp.input_norm", None), ("final_norm", [3, 8, 9]),
    ]  # fmt: skip
    assert "5 scale vectors, 131 entries" in repr(picked)
    wide = scales.where(lambda g: g.max > scales[0].max)
    assert all(g.max > scales[0].max for g in wide)
    assert [g.address for g, _ in scales.select(wide.selector)] == [g.address for g in wide]
    assert [g.address for g, _ in scales[2:4].select("**")] == [g.address for g in scales[2:4]]
    with pytest.raises(sv.AddressError, match="final_norm"):
        scales.select("finalnorm")
    with pytest.raises(sv.AddressError):
        scales.where(lambda g: False).selector  # noqa: B018


def test_taps_equal_forward_hooks(tiny_models):
    tiny = tiny_models["llama"]
    model = sv.load(tiny.file)
    ids = torch.arange(10).reshape(1, 10)
    theirs = {}
    norm = tiny.model.model.layers[1].post_attention_layernorm
    handle = norm.register_forward_hook(lambda module, args, out: theirs.update(input=args[0], scaled=out))
    with torch.no_grad():
        tiny.model(ids)
        handle.remove()
        plain = model.logits(ids)
        with model.taps("layers.1.mlp.input_norm", "input", "rms", "scaled") as seen:
            assert torch.equal(model.logits(ids), plain)
    site = seen["layers.1.mlp.input_norm"]
    assert site.forwards == 1 and not seen.watching
    for name, value in theirs.items():
        (ours,) = getattr(site, name)
        assert (ours - value).abs().max() <= 1e-5 * value.abs().max()
    rms = (theirs["input"].double().square().mean(-1, keepdim=True) + site.site.eps).sqrt()
    assert (site.rms[0] - rms).abs().max() <= 1e-5 * rms.max()
    with pytest.raises(sv.InvalidError):
        site.normalized  # noqa: B018  (not asked for)
    with pytest.raises(sv.InvalidError) as caught, model.taps("**", "inputs"):
        pass
    assert caught.value.code == "E_VALUE"
    with pytest.raises(sv.AddressError), model.taps("nothing.*"):
        pass


def test_many_rows_are_multiplied_by_onednn_where_mkl_is_slow(tiny_models):
    """Processors of others than Intel; what comes out can be written either way."""
    model = sv.load(tiny_models["llama"].file)
    final = model.scales["final_norm"]
    intel = "GenuineIntel" in pathlib.Path("/proc/cpuinfo").read_text()
    for rows, ours in ((63, False), (64, torch.backends.mkldnn.is_available() and not intel)):
        with model.override({final.address: torch.tensor(final.effective, dtype=torch.float32).requires_grad_()}):
            logits = model.logits(torch.arange(rows) % 50)
        assert (logits.grad_fn.name() == "LinearBackward") == ours
        logits[..., 3] = 0.0
        logits.sum().backward()


def test_gradients_and_overrides(llama):
    g = llama.scales["layers.1.attn.input_norm"]
    ids = torch.arange(1, 12)
    plain = llama.logits(ids)
    with llama.override(g, 2 * g.effective):
        doubled = llama.logits(ids)
    with llama.edit() as edit:
        edit.rescale(g, 2.0)
        assert torch.equal(llama.logits(ids), doubled)
    assert torch.equal(llama.logits(ids), plain) and not torch.equal(doubled, plain)

    vector = torch.tensor(g.effective, dtype=torch.float32, requires_grad=True)
    with llama.override({g.address: vector}), llama.taps(g, "vector_gradient") as seen:
        loss = torch.nn.functional.cross_entropy(llama.logits(ids)[0, :-1], ids[1:])
        loss.backward()
    assert torch.equal(seen[g.address].vector_gradient[0], vector.grad)
    saliency = llama.saliency(ids, context=64)
    assert saliency.loss == pytest.approx(loss.item(), rel=1e-5)
    assert np.allclose(saliency.gradient[g.address], vector.grad, rtol=1e-3, atol=1e-6)
    assert np.array_equal(saliency.ablation[g.address], -saliency.effective[g.address] * saliency.gradient[g.address])


def test_saliency_leaders_and_sweep(llama):
    ids = torch.randint(0, 160, (200,), generator=torch.Generator().manual_seed(1))
    saliency = llama.saliency(ids, context=64)
    top = saliency.top(224)
    every = np.concatenate([saliency.ablation[g.address] for g in llama.scales])
    assert [abs(e.score) for e in top] == sorted(np.abs(every), reverse=True)
    for e in top[:5]:
        assert saliency.ablation[e.address][e.channel] == e.score
        assert llama.scales[e.address].effective[e.channel] == e.effective
    assert saliency.top(1, largest="positive")[0].score == every.max()
    assert saliency.top(1, "gradient", largest="negative")[0].score == min(v.min() for v in saliency.gradient.values())
    assert "first-order leaders" in repr(saliency)
    with pytest.raises(sv.InvalidError):
        saliency.top(3, "size")

    trials = [(e.address, e.channel, 0.0) for e in top[:3]]
    changes = llama.sweep(ids, trials, context=64)
    for entry, change in zip(top, changes, strict=False):
        with llama.edit() as edit:
            edit.ablate(entry.selector)
            exact = sv.measure(llama, ids, context=64)
        assert change.loss_change.value == exact.loss_change.value
        assert change.kl.value == exact.kl.value and change.predictions == exact.predictions
    scores = llama.outliers()
    g = llama.scales[3]
    assert np.allclose(scores[g.address], np.abs(g.effective - g.effective.mean()) / g.effective.std())


def test_reductions_keep_figures_only(llama):
    ids = torch.randint(0, 160, (2, 16), generator=torch.Generator().manual_seed(2))
    with llama.taps("final_norm", "scaled") as seen, llama.reductions("final_norm") as sums:
        llama.logits(ids)
        llama.logits(ids[:1])
    rows = torch.cat([part.reshape(-1, 32) for part in seen["final_norm"].scaled]).double()
    figures = sums.at("final_norm", "scaled")
    assert figures.count == 48
    assert torch.allclose(figures.mean_square, rows.square().mean(0), rtol=1e-12)
    assert torch.equal(figures.maximum, rows.max(0).values)


def test_generate_equals_transformers(tiny_models):
    tiny = tiny_models["llama"]
    model = sv.load(tiny.file)
    prompt = [5, 9, 2]
    theirs = tiny.model.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 3:].tolist()  # fmt: skip
    made = model.generate(prompt, max_tokens=20, stop=[])
    assert made.ids == theirs and made.finish == "length" and isinstance(made, str)
    stopped = model.generate(prompt, max_tokens=20, stop=[theirs[7]])
    assert stopped.ids == theirs[: theirs.index(theirs[7])] and stopped.finish == "stop"
    drawn = [model.generate(prompt, 20, temperature=1.0, seed=s, stop=[]).ids for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with model.edit() as edit:
        edit.ablate("layers.0.attn.input_norm")
        before, after = model.generate_both(prompt, 20, stop=[])
    assert before.ids == theirs != after.ids
    with pytest.raises(sv.FileError, match=r"tokenizer\.json"):
        model.generate("text, but there is no tokenizer")


def test_cache_and_batches(llama):
    ids = torch.arange(20).reshape(1, 20)
    cache = sv.KvCache()
    parts = torch.cat([llama.logits(ids[:, :7], cache), llama.logits(ids[:, 7:], cache)], 1)
    whole = llama.logits(ids)
    assert len(cache) == 20
    assert (parts - whole).abs().max() <= 1e-4 * whole.abs().max()


def test_threads_and_dtypes(tiny_models):
    threads = torch.get_num_threads()
    try:
        model = sv.load(tiny_models["gemma3"].file, dtype="bfloat16", threads=1)
        assert torch.get_num_threads() == 1
        assert model.logits([1, 2, 3]).dtype == torch.float32
        assert sv.load(tiny_models["gemma3"].file, dtype="float64").logits([1, 2]).dtype == torch.float64
        with pytest.raises(sv.InvalidError):
            sv.load(tiny_models["gemma3"].file, threads=0)
    finally:
        torch.set_num_threads(threads)


def test_real_model_in_a_notebook(smollm2_gguf):
    """Three lines, then text in and text out."""
    model = sv.load(smollm2_gguf)
    start = time.perf_counter()
    g = model.scales["layers.3.mlp.input_norm"]
    assert time.perf_counter() - start < 1.0
    assert (g.native, g.role, g.width) == ("blk.3.ffn_norm.weight", "input", 576)
    assert [link.branch for link in g.consumers] == ["gate", "up"]
    text = model.generate("The capital of France is", max_tokens=4)
    assert "Paris" in text
    assert model.tokenizer.decode(text.ids) == text
    pieces = []
    chat = model.generate("What is two plus two?", max_tokens=12, chat=True, on_text=pieces.append)
    assert "".join(pieces) == chat != ""
