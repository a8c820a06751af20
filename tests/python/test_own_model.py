"""Models that were made here: saved, opened, watched, made plain, edited.

Weights are drawn by torch. What vectors are is computed again from the tensors by the paper's formulas.
"""

import json

import h5py
import numpy as np
import pytest
import scalevec as sv
import torch
from own_models import IDS, SIZES, command, drawn, effective, refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scalevec import _scalevec

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
