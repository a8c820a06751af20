"""Edits from Python: blocks, files, apply, export and revert."""

import hashlib
import json
import pathlib
import warnings

import numpy as np
import pytest
import scalevec as sv
import torch


def sha256(path) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


@pytest.fixture
def model(tiny_models):
    return sv.load(tiny_models["gemma3"].file)


def bits(model) -> list[bytes]:
    return [g.stored.numpy().tobytes() for g in model.scales]


def test_a_block_takes_its_edits_back(model):
    before = bits(model)
    g = model.scales["layers.2.mlp.input_norm"]
    base = g.effective
    with model.edit() as edit:
        report = edit.rescale("layers.{0..3}.mlp.input_norm", 0.9)
        assert (report.vectors, report.selected, report.changed) == (4, 4 * 32, 4 * 32)
        assert np.array_equal(g.effective, (np.float32(base * 0.9 - 1.0)).astype(np.float64) + 1.0)
        assert np.array_equal(g.base, base)
        assert model.edited
        edit.set(g, 2.0)
        edit.set("final_norm@1,5", [3.0, -4.0])
        edit.ablate(model.scales.where(lambda s: s.layer == 4 and s.role == "input"))
        edit.ablate("layers.5.attn.q_norm", "mean")
        assert (g.effective == 2.0).all()
        assert list(model.scales["final_norm"].effective[[1, 5]]) == [3.0, -4.0]
        assert (model.scales["layers.4.attn.input_norm"].effective == 0).all()
    assert bits(model) == before and not model.edited
    verbs = [one.verb for one in edit.to_edit().operations]
    assert verbs == ["rescale", "set", "set", "ablate", "ablate"]


def test_an_edit_takes_what_select_gives(model):
    chosen = model.scales.select("layers.1.**@3,7:12; final_norm")
    assert chosen.selector.endswith(";final_norm") and "@3,7:12;" in chosen.selector
    before = [g.effective for g in model.scales]
    with model.edit() as edit:
        edit.rescale(chosen, 2.0)
        after = [g.effective for g in model.scales]
    moved = {g.address: np.flatnonzero(a != b).tolist() for g, a, b in zip(model.scales, after, before, strict=True)}
    wanted = {g.address: list(range(g.width)) if where is None else where for g, where in chosen}
    assert {address: channels for address, channels in moved.items() if channels} == wanted


def test_a_list_of_vectors_is_a_target(model):
    a, b = model.scales[1], model.scales["final_norm"]
    with model.edit() as edit:
        assert edit.rescale([a, b], 2.0).vectors == edit.rescale([a.address, b], 2.0).vectors == 2


@pytest.mark.parametrize("target", [lambda s: True, 3, [("final_norm", [1])], []])
def test_what_is_no_selector_is_a_type_error_that_names_the_way(model, target):
    with pytest.raises(TypeError, match="where"), model.edit() as edit:
        edit.ablate(target)
    if callable(target):
        with pytest.raises(TypeError, match=r"where\(...\) takes a predicate"):
            model.scales.select(target)


def test_exceptions_and_nesting(model):
    before = bits(model)
    with pytest.raises(KeyError), model.edit() as outer:
        outer.rescale("final_norm", 2.0)
        with model.edit() as inner:
            inner.ablate("final_norm@0")
            kept = inner.keep()
        assert model.scales["final_norm"].effective[0] == 0
        with model.edit() as inner:
            inner.ablate("final_norm@1")
        assert model.scales["final_norm"].effective[1] != 0
        raise KeyError
    assert bits(model) == before
    assert len(kept.operations) == 2
    with pytest.raises(sv.InvalidError) as caught:
        outer.rescale("final_norm", 2.0)
    assert caught.value.code == "E_STATE"
    with pytest.raises(sv.InvalidError):
        model.edit().rescale("final_norm", 2.0)
    with pytest.raises(sv.InvalidError), outer:
        pass


def test_refusals_change_nothing(model):
    before = bits(model)
    cases = [
        (lambda e: e.rescale("final_nrm", 2.0), "E_ADDR"),
        (lambda e: e.rescale("final_norm@32", 2.0), "E_ADDR"),
        (lambda e: e.rescale("final_norm", 1.0), "E_NO_EFFECT"),
        (lambda e: e.rescale("**", float("nan")), "E_VALUE"),
        (lambda e: e.set("**", 1e300), "E_VALUE"),
        (lambda e: e.ablate("final_norm", "half"), "E_VALUE"),
        (lambda e: e.set("final_norm@1,2", [1.0]), "E_VALUE"),
    ]
    with model.edit() as edit:
        for call, code in cases:
            with pytest.raises(sv.Error) as caught:
                call(edit)
            assert caught.value.code in (code, "E_SCHEMA", "E_SHAPE"), caught.value
            assert caught.value.code == code or code == "E_VALUE"
            assert bits(model) == before
        assert edit.rescale("final_norm", 1.0, allow_no_effect=True).changed == 0


def test_somebody_else_writing_is_noticed(model):
    with pytest.raises(sv.InvalidError) as caught, model.edit() as edit:
        edit.rescale("final_norm", 2.0)
        model.scales["layers.1.mlp.output_norm"].stored[3] += 1
        edit.rescale("layers.1.mlp.output_norm", 2.0)
    assert caught.value.code == "E_STATE" and "layers.1.mlp.output_norm" in str(caught.value)
    with pytest.raises(sv.InvalidError):
        model.journal.check()
    model.revert()
    model.journal.check()
    assert not model.edited


def test_lost_changes_are_reported(tiny_models, tmp_path):
    """bfloat16 holds no value between 1 and 1 + 2^-7: a rescaling by 1.003 is lost on most entries."""
    from safetensors.torch import load_file, save_file

    source = tiny_models["llama"].file
    tensors = {k: v.bfloat16() for k, v in load_file(source / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    model = sv.load(tmp_path)
    g = model.scales["final_norm"]
    assert g.dtype == "BF16"
    with model.edit() as edit, pytest.warns(sv.RoundingWarning, match="lost"):
        report = edit.rescale(g, 1.003)
        expected = torch.tensor(g.base * 1.003).bfloat16()
        assert torch.equal(g.stored, expected)
        changed = int((expected != torch.tensor(g.base).bfloat16()).sum())
        assert (report.changed, report.lost, report.selected) == (changed, 32 - changed, 32)
        assert 0 < changed < 32


def test_edit_files(model, tmp_path):
    path = tmp_path / "calm.sv.json"
    with model.edit(note="for review") as edit:
        edit.rescale("layers.*.attn.input_norm", 0.9)
        inside = edit.to_edit()
    edit.save(path)
    read = sv.read_edit(path)
    assert read == edit.to_edit() == inside and read.note == "for review"
    assert json.loads(path.read_text()) == read.to_dict()
    assert (read.family, len(read.vectors)) == ("gemma3", 7)
    assert "rescale by 0.9" in read.describe() and len(read.describe(short=True)) < len(read.describe())
    old = np.frombuffer(read.vectors[0].old, np.float32)
    g = model.scales[read.vectors[0].address]
    assert np.array_equal(old, g.stored.numpy()[read.vectors[0].channels])
    assert read.vectors[0].base == g.digest
    with pytest.raises(sv.FileError) as caught:
        edit.save(path)
    assert caught.value.code == "E_PATH"
    edit.save(path, overwrite=True)

    with model.edit() as other:
        other.ablate("final_norm@3")
    both = sv.append(path, other)
    assert [one.verb for one in sv.read_edit(path).operations] == ["rescale", "ablate"] and both == sv.read_edit(path)
    with pytest.raises(sv.InvalidError) as caught:
        sv.append(path, other)
    assert caught.value.code == "E_BUNDLE" and "final_norm" in str(caught.value)


def test_apply_revert_and_wrong_base(model, tiny_models, tmp_path):
    before = bits(model)
    with model.edit() as edit:
        edit.rescale("layers.*.attn.input_norm", 0.9)
    path = tmp_path / "e.sv.json"
    edit.save(path)
    assert model.apply(path) is model
    assert model.edited and model.journal.edit() == edit.to_edit()
    with pytest.raises(sv.InvalidError) as caught:
        model.apply(path)
    assert caught.value.code == "E_STATE"
    assert model.revert(path) is model and bits(model) == before
    model.apply(edit)
    assert model.revert().edited is False and bits(model) == before
    with pytest.raises(sv.InvalidError) as caught:
        sv.load(tiny_models["llama"].file).apply(path)
    assert caught.value.code == "E_BUNDLE"


def test_edits_made_before_the_weights_are_read_hold(tiny_models, tmp_path):
    """The vectors of the table are those of the model that is built later."""
    ids = [[1, 2, 3, 4]]
    early, late = (sv.load(tiny_models["qwen3"].file) for _ in range(2))
    with early.edit() as edit:
        edit.rescale("layers.1.attn.q_norm", 3.0)
        assert "transformer" not in vars(early)
        edited = early.logits(ids)
    plain = early.logits(ids)
    assert torch.equal(late.logits(ids), plain)
    assert torch.equal(late.apply(edit).logits(ids), edited) and not torch.equal(edited, plain)
    change = sv.measure(sv.load(tiny_models["qwen3"].file).apply(edit), list(range(100)), context=32)
    assert change.kl.value > 0 and change.touched[0].address == "layers.1.attn.q_norm"


@pytest.mark.parametrize("layout", ["file", "shards"])
def test_export_and_revert_folders(tiny_models, tmp_path, layout):
    source = getattr(tiny_models["qwen3"], layout)
    model = sv.load(source)
    with model.edit() as edit:
        edit.ablate("layers.2.attn.k_norm@1:3")
    report = sv.load(source).apply(edit).export(tmp_path / "out")
    assert report.vectors == 1 and 1 <= report.bytes_changed <= 8
    changed = [f.name for f in source.iterdir() if sha256(f) != sha256(tmp_path / "out" / f.name)]
    assert len(changed) == 1 and changed[0].endswith(".safetensors")
    old, new = (np.frombuffer((folder / changed[0]).read_bytes(), np.uint8) for folder in (source, tmp_path / "out"))
    assert int((old != new).sum()) == report.bytes_changed
    assert list(sv.load(tmp_path / "out").scales["layers.2.attn.k_norm"].effective[1:3]) == [0.0, 0.0]
    assert model.edited is False and "transformer" not in vars(model)
    sv.revert(tmp_path / "out", edit, tmp_path / "back")
    assert all(sha256(f) == sha256(tmp_path / "back" / f.name) for f in source.iterdir())
    with pytest.raises(sv.FileError):
        sv.export(source, edit, tmp_path / "out")


def test_export_real_gguf(smollm2_gguf, tmp_path):
    model = sv.load(smollm2_gguf)
    with model.edit() as edit:
        edit.ablate("layers.4.mlp.input_norm@17")
    seen = []
    sv.export(smollm2_gguf, edit, tmp_path / "e.gguf", progress=lambda *step: seen.append(step))
    assert seen and seen[-1][1] == seen[-1][2]
    g = sv.inspect(tmp_path / "e.gguf")["layers.4.mlp.input_norm"]
    expected = model.scales["layers.4.mlp.input_norm"].effective.copy()
    expected[17] = 0
    assert np.array_equal(g.effective, expected)
    sv.revert(tmp_path / "e.gguf", edit, tmp_path / "r.gguf")
    assert sha256(tmp_path / "r.gguf") == sha256(smollm2_gguf)


def test_rebase_says_how_far_the_bases_are(tiny_models, tmp_path):
    from safetensors.torch import load_file, save_file

    source = tiny_models["llama"].file
    tensors = {k: v.bfloat16() for k, v in load_file(source / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    with sv.load(source).edit() as edit:
        edit.rescale("final_norm", 0.5)
    with pytest.warns(sv.RoundingWarning, match="bases differ"):
        made = sv.rebase(edit, tmp_path)
    twin = sv.load(tmp_path)
    g = twin.scales["final_norm"]
    twin.apply(made)
    assert np.array_equal(g.effective, torch.tensor(g.base * 0.5).bfloat16().double().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sv.rebase(edit, source).vectors[0].after == edit.to_edit().vectors[0].after
