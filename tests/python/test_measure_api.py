"""`sv.measure` and its results file, against figures computed here from transformers' logits, h5py and xarray."""

import importlib.resources
import json

import numpy as np
import pytest
import scalevec as sv
import torch

IDS = torch.randint(0, 160, (1500,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model(tiny_models):
    return sv.load(tiny_models["llama"].file)


@pytest.fixture(scope="module")
def edit(model):
    with model.edit() as block:
        block.rescale("layers.1.*.input_norm", 1.3)
        block.ablate("final_norm@4")
    return block.to_edit()


@pytest.fixture(scope="module")
def change(model, edit):
    return sv.measure(model, IDS, edit=edit, context=64, per_token=True)


def test_figures_equal_those_of_transformers(tiny_models, model, edit, change):
    """The protocol once more, written plainly: two modules, windows of 64, float64."""
    import copy

    base = copy.deepcopy(tiny_models["llama"].model).double()
    edited = copy.deepcopy(base)
    parameters = dict(edited.named_parameters())
    with torch.no_grad():
        for vector in edit.vectors:
            g = model.scales[vector.address]
            parameters[vector.native].copy_(torch.tensor(g.effective))
        for layer in ("layers.1.attn.input_norm", "layers.1.mlp.input_norm"):
            parameters[model.scales[layer].native] *= 1.3
        parameters["model.norm.weight"][4] = 0
        rows = []
        for start in range(0, len(IDS), 64):
            window = IDS[start : start + 64]
            if len(window) < 2:
                continue
            p, q = (module(window[None]).logits[0, :-1].log_softmax(-1) for module in (base, edited))
            at = torch.arange(len(window) - 1)
            rows.append(
                torch.stack(
                    [
                        -p[at, window[1:]], -q[at, window[1:]], (p.exp() * (p - q)).sum(-1),
                        (q.exp() * (q - p)).sum(-1), (p.argmax(-1) != q.argmax(-1)).double(),
                        (p.exp() - q.exp()).abs().sum(-1) / 2,
                    ]
                )
            )  # fmt: skip
    table = torch.cat(rows, 1)
    mean = table.mean(1)
    assert change.predictions == table.shape[1] == 1500 - 24
    # float32 logits of size 10 differ from float64 by about 1e-5; losses and divergences move by as much at most.
    assert change.loss_base.value == pytest.approx(mean[0].item(), abs=2e-5)
    assert change.loss_edited.value == pytest.approx(mean[1].item(), abs=2e-5)
    assert change.loss_change.value == pytest.approx((mean[1] - mean[0]).item(), abs=2e-5)
    assert change.perplexity_base.value == pytest.approx(mean[0].exp().item(), rel=2e-5)
    assert change.kl.value == pytest.approx(mean[2].item(), abs=2e-5)
    assert change.kl_reverse.value == pytest.approx(mean[3].item(), abs=2e-5)
    assert abs(change.flips.value - mean[4].item()) <= 2 / change.predictions
    assert change.tv.value == pytest.approx(mean[5].item(), abs=2e-5)
    assert np.allclose(change.per_token.kl, table[2], atol=2e-4)
    assert np.allclose(change.per_token.loss_change, table[1] - table[0], atol=2e-4)
    assert change.loss_change.low < change.loss_change.value < change.loss_change.high


def test_names_and_forms(change, edit):
    assert float(change.kl) == change.kl.value
    row = json.loads(json.dumps(change.to_dict(), allow_nan=False))
    for name in ("loss_base", "loss_edited", "loss_change", "kl", "flips"):
        figure = getattr(change, name)
        assert row[name] == {"value": figure.value, "low": figure.low, "high": figure.high}
    assert row["predictions"] == 1476 and row["context"] == 64 and row["seed"] == 0 and row["dtype"] == "float32"
    assert row["no_op"]["largest_logit_difference"] == 0 and row["no_op"]["kl"] == 0
    assert [v["address"] for v in row["touched"]] == [
        "layers.1.attn.input_norm", "layers.1.mlp.input_norm", "final_norm",
    ]  # fmt: skip
    assert "KL(base || edited)" in repr(change) and "no-op control" in change.text()
    assert change._repr_html_().count("<tr>") == 10


def test_three_ways_measure_the_same(model, edit, change):
    """In a block, by an edit's value or file, and applied: the same figures to the bit; the model stays as it was."""
    before = [g.digest for g in model.scales]
    with model.edit() as block:
        block.rescale("layers.1.*.input_norm", 1.3)
        block.ablate("final_norm@4")
        inside = sv.measure(model, IDS, context=64)
    model.apply(edit)
    applied = sv.measure(model, IDS.tolist(), context=64)
    model.revert()
    for name in ("loss_base", "loss_change", "kl", "tv"):
        figures = [getattr(m, name) for m in (change, inside, applied)]
        assert len({(f.value, f.low, f.high) for f in figures}) == 1
    assert [g.digest for g in model.scales] == before


def test_texts_of_several_kinds(model, edit):
    rows = IDS[:1200].reshape(4, 300)
    whole = sv.measure(model, rows, edit=edit, context=100)
    lists = sv.measure(model, [row.tolist() for row in rows], edit=edit, context=100)
    assert whole.loss_change.value == lists.loss_change.value and whole.predictions == 4 * 297
    assert whole.to_dict()["documents"] == 4
    assert sv.measure(model, IDS, edit=edit, tokens=130, context=100).predictions == 99 + 29
    few = sv.measure(model, IDS[:64], edit=edit)
    assert few.loss_change.low is None and "no intervals" in few.text()
    assert json.loads(json.dumps(few.to_dict()))["kl"]["low"] is None
    with_bos = sv.measure(model, IDS[:64], edit=edit, bos=1)
    assert with_bos.predictions == 64 and with_bos.to_dict()["bos"] == 1
    for wrong, code in [
        ([], "E_VALUE"),
        ([3], "E_VALUE"),
        ([160, 1], "E_VALUE"),
        (np.zeros(9), "E_DTYPE"),
        ([["a", 1]], "E_DTYPE"),
        ([[1, 2], "a"], "E_SCHEMA"),
        ({"a": 1}, "E_SCHEMA"),
    ]:
        with pytest.raises(sv.Error) as caught:
            sv.measure(model, wrong, edit=edit)
        assert caught.value.code == code, wrong
    for run in (
        lambda: sv.measure(model, IDS, edit=edit, tokens=0),
        lambda: model.saliency(IDS, tokens=0),
        lambda: model.sweep(IDS, [("final_norm", 0, 0.0)], tokens=-1),
        lambda: sv.measure(model, np.array(3), edit=edit),
    ):
        with pytest.raises(sv.InvalidError, match=r"tokens:|one dimension"):
            run()
    with pytest.raises(sv.FileError, match=r"tokenizer\.json"):
        sv.measure(model, "a text", edit=edit)


def test_unedited_and_effectless_models_are_refused(model):
    with pytest.raises(sv.InvalidError) as caught:
        sv.measure(model, IDS[:200])
    assert caught.value.code == "E_NO_EFFECT"
    nothing = sv.measure(model, IDS[:200], allow_unedited=True)
    assert nothing.kl.value == 0 and nothing.loss_change.value == 0 and not nothing.reached_output


def test_results_file(model, change, edit, tmp_path):
    h5py, xarray = pytest.importorskip("h5py"), pytest.importorskip("xarray")
    path = tmp_path / "out.h5"
    change.save(path, command="test")
    with h5py.File(path) as file:
        assert file.attrs["command"] == "test" and file.attrs["seed"] == 0
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            assert file[name][()] is not None
            assert file[name].dtype.names is None  # no compound types
        table = file["behaviour/measure"]
        figures = dict(zip(table["name"].asstr()[:], table["value"][:], strict=True))
        assert figures["kl"] == change.kl.value and figures["loss_change"] == change.loss_change.value
        assert table.attrs["predictions"] == change.predictions and table.attrs["no_op_kl"] == 0
        assert np.array_equal(file["behaviour/measure/per_token/kl"][:], change.per_token.kl.numpy())
        assert list(file["sites/address"].asstr()[:]) == [g.address for g in model.scales]
        start, width = file["sites/start"][3], file["sites/width"][3]
        assert np.array_equal(file["scales/effective"][start : start + width], model.scales[3].effective)
        assert list(file["edits/address"].asstr()[:]) == [vector.address for vector in edit.vectors]
        assert file["edits"].attrs["edit"] == edit.text()
    for group in ("behaviour/measure", "behaviour/measure/per_token", "sites", "edits", "edits/operations"):
        with xarray.open_dataset(path, group=group, engine="h5netcdf") as read:
            assert read.sizes
    with pytest.raises(sv.FileError):
        change.save(path)
    change.save(path, overwrite=True)


def test_screening_is_saved_beside_the_scales(model, change, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "out.h5"
    saliency = model.saliency(IDS[:200], context=64)
    trials = [("final_norm", 3, 0.5), ("layers.0.attn.input_norm", 0, 0.0), ("final_norm", 9, 2.0)]
    screened = model.sweep(IDS[:200], trials, context=64)
    verified = model.sweep(IDS, trials[1:], context=64)
    monkeypatch.setattr("sys.argv", ["scalevec", "\udcff.h5"])  # how Python shows the byte FF of a file's name
    change.save(path, saliency=saliency, sweeps={"screened": (trials, screened), "verified": (trials[1:], verified)})
    with h5py.File(path) as file:
        assert "scalevec" in file.attrs["command"]
        for name in ("gradient", "ablation"):
            assert np.array_equal(file["scales"][name][:], np.concatenate(list(getattr(saliency, name).values())))
        rows = file["sweep"]
        columns = (rows["address"].asstr()[:], rows["channel"][:], rows["value"][:], rows["method"].asstr()[:])
        assert list(zip(*columns, strict=True)) == [
            *((*trial, "screened") for trial in trials), *((*trial, "verified") for trial in trials[1:])
        ]  # fmt: skip
        made = [*screened, *verified]
        for column, figure, part in [
            ("loss", "loss_edited", "value"), ("loss_change", "loss_change", "value"),
            ("loss_change_low", "loss_change", "low"), ("loss_change_high", "loss_change", "high"),
            ("kl", "kl", "value"), ("flips", "flips", "value"),
        ]:  # fmt: skip
            want = [getattr(getattr(one, figure), part) for one in made]
            assert np.array_equal(rows[column][:], np.array(want, float), equal_nan=True), column
        assert list(rows["predictions"][:]) == [one.predictions for one in made]
        assert np.isnan(rows["loss_change_low"][0]) and not np.isnan(rows["loss_change_low"][-1])
    with pytest.raises(sv.InvalidError) as caught:
        change.save(tmp_path / "none.h5", sweeps={"screened": (trials, screened[1:])})
    assert caught.value.code == "E_SHAPE" and list(tmp_path.iterdir()) == [path]


def test_the_tokenizers_own_bos_begins_every_window(tiny_models, tmp_path, edit):
    """Text of a model whose tokenizer adds BOS is what the same ids are with that BOS before each window."""
    import shutil

    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path / "with_tokenizer"
    shutil.copytree(tiny_models["llama"].file, folder)
    words = {f"w{i}": i for i in range(160)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="w7 $A", special_tokens=[("w7", 7)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "w7"}))
    model = sv.load(folder)
    assert model.tokenizer.adds_bos and model.tokenizer.encode("w3 w4") == [7, 3, 4]
    documents = [IDS[:90].tolist(), IDS[90:200].tolist()]
    of_text = sv.measure(model, [" ".join(f"w{i}" for i in ids) for ids in documents], edit=edit, context=32)
    of_ids = sv.measure(model, documents, edit=edit, context=32, bos=7)
    assert of_text.predictions == of_ids.predictions == 200
    assert of_text.kl.value == of_ids.kl.value and of_text.to_dict()["bos"] == 7
    assert of_text.kl.value != sv.measure(model, documents, edit=edit, context=32).kl.value


def test_text_on_the_real_model(smollm2_gguf):
    """Text in, the tokenizer's ids inside; a sensible loss; an edit that hurts."""
    model = sv.load(smollm2_gguf)
    text = (
        "The quick brown fox jumps over the lazy dog. Paris is the capital of France, and Rome is that of Italy. " * 4
    )
    with model.edit() as block:
        block.ablate("layers.29.mlp.input_norm")
        seen = []
        change = sv.measure(model, text, context=64, progress=lambda *step: seen.append(step))
    assert change.predictions == len(model.tokenizer.encode(text)) - change.to_dict()["windows"]
    assert 0.1 < change.loss_base.value < 4 and change.kl.value > 0
    assert change.to_dict()["bos"] is None  # SmolLM2's rule adds none
    assert seen and seen[-1][1] == seen[-1][2]


def test_a_tiny_divergence_on_the_real_model_equals_float64(smollm2_gguf):
    """A mean KL near 1e-8, of an edit that all later layers carry, is right to 1 % although the model is float32."""
    model, wide = sv.load(smollm2_gguf), sv.load(smollm2_gguf, dtype="float64")
    text = (importlib.resources.files("scalevec") / "guide.md").read_text()
    ids = torch.tensor(model.tokenizer.encode(text)[:1025])
    with model.edit() as block:
        block.rescale("layers.10.mlp.input_norm", 1.0002)
        tiny = block.to_edit()
    change = sv.measure(model, ids, edit=tiny, context=1025)
    assert change.predictions == 1024

    @torch.no_grad()
    def log_probabilities() -> torch.Tensor:
        logits = wide.transformer.logits(ids[None])[0, :-1]
        assert logits.dtype == torch.float64
        return logits.log_softmax(-1)

    p = log_probabilities()
    with wide.edit() as block:
        block.apply(tiny)
        q = log_probabilities()
    kl, kl_reverse = (p.exp() * (p - q)).sum(-1).mean().item(), (q.exp() * (q - p)).sum(-1).mean().item()
    assert 1e-8 < kl < 3e-8
    assert change.kl.value == pytest.approx(kl, rel=0.01)
    assert change.kl_reverse.value == pytest.approx(kl_reverse, rel=0.01)


def test_an_edit_on_top_of_another_is_named_with_it(model, edit):
    """The figures are those of both against the file: so must be the edit that the result names."""
    with model.edit() as first:
        first.rescale("layers.0.mlp.input_norm", 1.5)
        both = sv.measure(model, IDS, edit=edit, context=64)
        assert {v.address for v in both.edit.vectors} == {v.address for v in edit.vectors} | {"layers.0.mlp.input_norm"}
    assert float(both.kl) != float(sv.measure(model, IDS, edit=edit, context=64).kl)


def test_an_edit_of_an_edited_file_is_named_with_what_it_stands_on(model, tmp_path):
    """Both edits are of the same vector: counting vectors would not tell them apart."""
    with model.edit() as block:
        block.rescale("final_norm", 1.5)
        model.export(tmp_path / "first")
        with sv.load(tmp_path / "first").edit() as second:
            second.ablate("final_norm@4")
        both = sv.measure(model, IDS, edit=second.to_edit(), context=64)
    assert [operation.verb for operation in both.edit.operations] == ["rescale", "ablate"]
    assert [vector.base for vector in both.edit.vectors] == [model.scales["final_norm"].digest]
