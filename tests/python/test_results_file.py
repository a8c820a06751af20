"""A results file, read by programs that we did not write: h5py, xarray with both engines, h5dump."""

import json
import shutil
import subprocess

import h5py
import numpy as np
import pytest
import safetensors.numpy
import scalevec as sv
import torch

NATS = {"loss_base", "loss_change", "kl"}
# Every group of the documented schema (docs/results_file.md), its dimension, and its columns.
SCHEMA = {
    "model": ("site", ["sha256"]),
    "sites": (
        "site",
        ["address", "native", "role", "kind", "parametrisation", "offset", "eps", "width", "group", "start",
         "consumers", "producers"],
    ),
    "scales": ("channel", ["stored", "effective", "site", "entry", "gradient", "ablation"]),
    "edits": ("edited_vector", ["address", "native", "sha256_before", "sha256_after", "channels"]),
    "edits/operations": ("operation", ["verb", "selector", "arguments", "changed", "lost"]),
    "behaviour/measure": ("figure", ["name", "unit", "value", "low", "high"]),
    "behaviour/measure/per_token": (
        "prediction", ["document", "position", "target", "loss_base", "loss_change", "kl", "tv", "flip"]
    ),
    "sweep": (
        "edit",
        ["address", "channel", "value", "loss", "loss_change", "loss_change_low", "loss_change_high", "kl",
         "kl_error", "flips", "predictions", "method"],
    ),
}  # fmt: skip


def write(folder, path):
    """What the program write_results does, in Python."""
    model, ids, i = sv.load(folder), [], 1
    for k in range(1500):
        i = (i * 31 + 7 + k % 5) % 160
        ids.append(i)
    text = [ids[:900], ids[900:]]
    saliency = model.saliency(text, context=64, tokens=128)
    trials = [(entry.address, entry.channel, 0.0) for entry in saliency.top(5)]
    changes = model.sweep(text, trials, context=64, tokens=256)
    with model.edit() as block:
        block.rescale("role:input", 0.9)
        block.ablate("final_norm@3,5:8")
        measured = sv.measure(model, text, context=64, seed=9, per_token=True)
        measured.save(path, saliency=saliency, sweeps={"screened": (trials, changes)}, command="write_results")


@pytest.fixture(scope="module", params=["cpp", "python"])
def written(request, program, tiny_models, tmp_path_factory):
    """One results file for each of two conventions: (model, path)."""
    made = {}
    for name in ("llama", "gemma3"):
        path = tmp_path_factory.mktemp("results") / f"{name}.h5"
        if request.param == "python":
            write(tiny_models[name].file, path)
        else:
            tool = program("write_results")
            subprocess.run([tool, tiny_models[name].file, path], check=True, capture_output=True, text=True)
        made[name] = (tiny_models[name], path)
    return made


def texts(dataset) -> list[str]:
    return list(dataset.asstr()[()])


def test_every_dataset_of_the_schema_and_no_other(written):
    for _, path in written.values():
        with h5py.File(path) as file:
            found = set()
            file.visititems(lambda name, item: found.add(name) if isinstance(item, h5py.Dataset) else None)  # noqa: B023
            expected = {"model/config"}
            for group, (dimension, columns) in SCHEMA.items():
                expected |= {f"{group}/{column}" for column in [dimension, *columns]}
                for column in columns:
                    dataset = file[group][column]
                    assert list(dataset.dims[0].keys()) == [dimension]
                    assert len(dataset) == len(file[group][dimension]) > 0
                    assert not dataset.dtype.fields, "no compound types"
            assert found == expected


def test_attributes_say_how_it_was_made(written, request):
    by_python = request.node.callspec.params["written"] == "python"
    for _, path in written.values():
        with h5py.File(path) as file:
            a = file.attrs
            assert (a["schema"], a["complete"], a["seed"], a["device"], a["dtype"]) == (1, 1, 9, "cpu", "float32")
            # A C++ program knows the version of its headers, without the build's own part.
            assert a["torch"] == (torch.__version__ if by_python else torch.__version__.split("+")[0])
            assert a["scalevec"] and a["threads"] >= 1
            assert np.datetime64(a["created"].rstrip("Z")) > np.datetime64("2026-01-01")
            json.loads(file["model/config"].asstr()[()])
            assert file["model"].attrs["family"] in ("llama", "gemma3")


def test_scales_are_those_of_the_file_edited_or_not(written):
    for name, (model, path) in written.items():
        tensors = safetensors.numpy.load_file(model.file / "model.safetensors")
        offset = 1.0 if name == "gemma3" else 0.0
        with h5py.File(path) as file:
            sites, scales = file["sites"], file["scales"]
            assert set(sites["offset"][()]) == {offset}
            natives = texts(sites["native"])
            for i, native in enumerate(natives):
                start, width = sites["start"][i], sites["width"][i]
                want = tensors[native].astype(np.float64) + offset
                got = scales["effective"][start : start + width]
                assert np.array_equal(got, want)
                assert np.array_equal(got, scales["stored"][start : start + width].astype(np.float64) + offset)
                assert (scales["site"][start : start + width] == i).all()
                assert np.array_equal(scales["entry"][start : start + width], np.arange(width))
            ablation = -scales["gradient"][()] * np.concatenate(
                [tensors[native].astype(np.float64) + offset for native in natives]
            )
            assert np.array_equal(scales["ablation"][()], ablation)


def test_figures_follow_from_the_values_per_token(written):
    for _, path in written.values():
        with h5py.File(path) as file:
            group = file["behaviour/measure"]
            figures = dict(zip(texts(group["name"]), group["value"][()], strict=True))
            low = dict(zip(texts(group["name"]), group["low"][()], strict=True))
            high = dict(zip(texts(group["name"]), group["high"][()], strict=True))
            token = {key: item[()] for key, item in group["per_token"].items()}
            assert group.attrs["predictions"] == len(token["kl"])
            assert group.attrs["no_op_kl"] == 0 and group.attrs["no_op_largest_logit_difference"] == 0
            for name in ("loss_base", "loss_change", "kl", "tv"):
                assert figures[name] == pytest.approx(token[name].mean(), rel=1e-12)
                assert low[name] < figures[name] < high[name]
            assert figures["flips"] == pytest.approx(token["flip"].mean(), rel=1e-12)
            assert figures["loss_edited"] == pytest.approx(figures["loss_base"] + figures["loss_change"], rel=1e-12)
            assert figures["perplexity_base"] == pytest.approx(np.exp(figures["loss_base"]), rel=1e-12)
            assert set(token["document"]) == {0, 1}
            for name in NATS:
                assert group["per_token"][name].attrs["units"] == "nats"
            # 900 ids in windows of 64 predict every id but the first of each window.
            first = token["position"][token["document"] == 0]
            assert np.array_equal(first, [i for i in range(900) if i % 64])


def test_the_interval_is_a_paired_bootstrap_of_chunks(written):
    _, path = written["llama"]
    with h5py.File(path) as file:
        group = file["behaviour/measure"]
        change, document = group["per_token/loss_change"][()], group["per_token/document"][()]
        names = texts(group["name"])
        low, high = (group[c][names.index("loss_change")] for c in ("low", "high"))
    chunks = []
    for d in (0, 1):
        values = change[document == d]
        chunks += [values[i : i + 64] for i in range(0, len(values), 64)]
    sums, sizes = np.array([c.sum() for c in chunks]), np.array([len(c) for c in chunks])
    drawn = np.random.default_rng(0).integers(0, len(chunks), (20_000, len(chunks)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    want_low, want_high = np.percentile(means, [2.5, 97.5])
    # 2,000 resamples leave a standard error of about 4 % of the width in a 2.5 % percentile.
    assert abs(low - want_low) <= 0.15 * (want_high - want_low)
    assert abs(high - want_high) <= 0.15 * (want_high - want_low)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_reads_every_group_as_h5py_does(written, engine):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip({"h5netcdf": "h5netcdf", "netcdf4": "netCDF4"}[engine])
    for _, path in written.values():
        with h5py.File(path) as file:
            for group, (dimension, columns) in SCHEMA.items():
                with xarray.open_dataset(path, group=group, engine=engine) as dataset:
                    for column in columns:
                        assert dataset[column].dims == (dimension,), (group, column)
                        want = file[group][column]
                        if want.dtype == object:
                            assert list(dataset[column].values) == texts(want)
                        else:
                            np.testing.assert_array_equal(dataset[column].values, want[()])
            with xarray.open_dataset(path, group="model", engine=engine) as dataset:
                assert json.loads(dataset["config"].item()) == json.loads(file["model/config"].asstr()[()])


def test_h5dump_reads_it(written):
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump is not installed")
    _, path = written["llama"]
    out = subprocess.run(["h5dump", path], capture_output=True, text=True, check=True)
    assert 'ATTRIBUTE "complete"' in out.stdout and "layers.0.attn.input_norm" in out.stdout
