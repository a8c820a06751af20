"""The main job on the real SmolLM2, with smaller figures, against plain torch, h5py and the gguf package."""

import collections
import hashlib
import importlib.resources
import pathlib

import numpy as np
import pytest
import scalevec as sv
import torch
from scalevec import demo

SALIENCY, VERIFY = 64, 64
Job = collections.namedtuple("Job", "found folder sweep predicted")


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def job(smollm2_gguf, tmp_path_factory):
    """What the demo returned, its folder, and two tables of its results file: all that it says it did."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("demo")
    found = demo.run(
        smollm2_gguf,
        folder,
        saliency_tokens=SALIENCY,
        screen_tokens=32,
        verify_tokens=VERIFY,
        per_ranking=2,
        reply_tokens=4,
    )
    with h5py.File(folder / "results.h5") as file:
        assert file.attrs["complete"] == 1
        columns = ("address", "channel", "value", "loss_change", "method")
        values = [file[f"sweep/{c}"][:] if c in ("channel", "value", "loss_change") else file[f"sweep/{c}"].asstr()[:]
                  for c in columns]  # fmt: skip
        predicted = file["scales/ablation"][:]
        assert (file["behaviour/measure/per_token/target"].shape[0]) == VERIFY - 1
    sweep = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    yield Job(found, folder, sweep, predicted)
    (folder / "edited.gguf").unlink()


def test_the_named_entry_changes_the_loss_most_of_those_verified(job, smollm2_gguf):
    """Every verified loss change once more, by the model's logits in an edit block and torch's cross entropy."""
    model = sv.load(smollm2_gguf)
    text = (importlib.resources.files("scalevec") / "guide.md").read_text()
    ids = torch.tensor([model.tokenizer.encode(text)[SALIENCY : SALIENCY + VERIFY]])

    @torch.no_grad()
    def loss() -> float:
        logits = model.transformer.logits(ids)[0, :-1].double()
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()

    base, change = loss(), {}
    verified = [row for row in job.sweep if row["method"] == "verified"]
    for row in verified:
        entry = (row["address"], row["channel"])
        with model.edit() as edit:
            edit.ablate(f"{entry[0]}@{entry[1]}", "zero")
            change[entry] = loss() - base
        assert row["value"] == 0 and row["loss_change"] == pytest.approx(change[entry], abs=1e-4)
    order = sorted(change, key=change.get, reverse=True)
    assert [job.found[name][:2] for name in ("entry", "runner_up")] == order[:2]
    assert job.found["loss_change"] == pytest.approx(change[order[0]], abs=1e-4) and change[order[0]] > 0
    assert job.found["helps"] is None, "63 predictions give no interval, so no help is sure"


def test_finalists_led_the_screening_and_candidates_the_saliency(job, smollm2_gguf):
    rows = {m: [r for r in job.sweep if r["method"] == m] for m in ("screened", "verified")}
    screened = sorted(rows["screened"], key=lambda row: -row["loss_change"])
    entries = [(row["address"], row["channel"]) for row in screened]
    assert 4 <= len(entries) == len(set(entries)) <= 4 * 2
    assert {(r["address"], r["channel"]) for r in rows["verified"]} == {*entries[:3], *entries[-2:]}
    places = [(g.address, j) for g in sv.load(smollm2_gguf).scales for j in range(g.width)]
    for leader in (job.predicted.argmax(), job.predicted.argmin(), abs(job.predicted).argmax()):
        assert places[leader] in entries


def test_the_exported_file_differs_in_that_one_entry_and_is_restored(job, smollm2_gguf, tmp_path):
    from gguf import GGUFReader

    edit = sv.read_edit(job.folder / "worst-entry.sv.json")
    (vector,) = edit.vectors
    assert (vector.address, *vector.channels) == job.found["entry"][:2]
    old, new = GGUFReader(smollm2_gguf), GGUFReader(job.folder / "edited.gguf")
    assert [t.name for t in old.tensors] == [t.name for t in new.tensors]
    different = [(a, b) for a, b in zip(old.tensors, new.tensors, strict=True) if a.data.tobytes() != b.data.tobytes()]
    ((a, b),) = different
    assert a.name == vector.native
    assert np.flatnonzero(a.data != b.data).tolist() == vector.channels and b.data[vector.channels[0]] == 0
    one, two = (np.memmap(f, np.uint8, "r") for f in (smollm2_gguf, job.folder / "edited.gguf"))
    places = np.flatnonzero(one != two) - a.data_offset - 4 * vector.channels[0]
    assert len(places) == job.found["different_bytes"] and set(places) <= {0, 1, 2, 3}

    sv.revert(job.folder / "edited.gguf", edit, tmp_path / "back.gguf")
    assert sha256(tmp_path / "back.gguf") == sha256(smollm2_gguf) != sha256(job.folder / "edited.gguf")
    (tmp_path / "back.gguf").unlink()


def test_the_picture_is_a_png(job):
    from PIL import Image

    with Image.open(job.folder / "screening.png") as picture:
        picture.load()
        assert picture.format == "PNG" and len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_a_byte_that_differs_elsewhere_stops_the_demo(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(bytes(100))
    for places, says in [((40, 43), ""), ((40, 44), "byte 44 differs"), ((39,), "byte 39 differs"), ((), "no byte")]:
        changed = bytearray(100)
        for place in places:
            changed[place] = 1
        b.write_bytes(changed)
        if not says:
            assert demo._only_difference(a, b, 40, 44) == len(places)
            continue
        with pytest.raises(AssertionError, match=says):
            demo._only_difference(a, b, 40, 44)
