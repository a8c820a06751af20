"""The main job on the real SmolLM2, against plain torch, h5py and the gguf package."""

import collections
import contextlib
import hashlib
import importlib.resources
import io
import pathlib
import shutil

import numpy as np
import pytest
import scalevec as sv
import torch
from scalevec import demo

SALIENCY, VERIFY = 64, 64
Job = collections.namedtuple("Job", "found folder sweep predicted said")
Figure = collections.namedtuple("Figure", "value low high")


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def do(folder: pathlib.Path, **options) -> Job:
    """What the demo returned, its folder, two tables of its results file, and its output: all that it says it did."""
    h5py = pytest.importorskip("h5py")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = demo.run(output=folder, **options)
    with h5py.File(folder / "results.h5") as file:
        assert file.attrs["complete"] == 1
        columns = ("address", "channel", "value", "loss_change", "method")
        values = [file[f"sweep/{c}"][:] if c in ("channel", "value", "loss_change") else file[f"sweep/{c}"].asstr()[:]
                  for c in columns]  # fmt: skip
        predicted = file["scales/ablation"][:]
        assert file["behaviour/measure/per_token/target"].shape[0] == found["predictions"]
    sweep = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    return Job(found, folder, sweep, predicted, said.getvalue())


@pytest.fixture(scope="module")
def job(smollm2_gguf, tmp_path_factory):
    options = {"saliency_tokens": SALIENCY, "screen_tokens": 32, "verify_tokens": VERIFY, "per_ranking": 2}
    done = do(tmp_path_factory.mktemp("demo"), model=smollm2_gguf, reply_tokens=4, **options)
    yield done
    (done.folder / "edited.gguf").unlink()


def assert_summary_agrees(job: Job) -> None:
    """The closing summary says what the run returned and what its table of ablations holds."""
    found, summary = job.found, job.said.rpartition("-" * 20)[2]

    def nats(figure) -> str:
        interval = "no interval (under 20 chunks)"
        if figure.low is not None:
            interval = f"[{number(figure.low)}, {number(figure.high)}]"
        return f"{figure.value:+z.3f} nats per token, 95 % interval {interval}"

    def number(value: float) -> str:
        return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.3e}"

    verified = [row for row in job.sweep if row["method"] == "verified"]
    screened = [row for row in job.sweep if row["method"] == "screened"]
    entries = job.predicted.size
    assert found["unverified"] == entries - len(verified)
    worst, runner_up = found["loss_change"], found["runner_up_loss_change"]
    assert f"{found['entry'].selector}, of {entries:,} among 134,515,008 parameters" in summary
    assert f"  {nats(worst)}\n" in summary and f"; {found['predictions']:,} predictions)." in summary
    lead = worst.low is not None and runner_up.high is not None and worst.low > runner_up.high
    says = "a sure lead: the intervals do not overlap" if lead else "not resolved by these intervals"
    assert f"Runner-up: {found['runner_up'].selector}, {nats(runner_up)}; {says}.\n" in summary
    least = min(verified, key=lambda row: row["loss_change"])
    nearest = f"{least['address']}@{least['channel']}, {least['loss_change']:+z.3f} nats"
    words = "No single ablation is sure to help on this text; nearest:"
    if found["helps"]:
        assert found["helps"][:2] == (least["address"], least["channel"]) and least["loss_change"] < 0
        words = "One ablation helps for sure on this text:"
    assert f"{words} {nearest}" in summary
    assert (
        f"exactly: {entries - len(screened):,} entries; verified: {len(verified)}, so {found['unverified']:,} "
        in summary
    )


def test_the_summary_says_what_was_found(job):
    assert job.found["predictions"] == VERIFY - 1
    assert_summary_agrees(job)


def test_the_real_job_on_the_packages_model(tmp_path):
    """At its full size, with nothing chosen but the folder, as `make demo` runs it."""
    job = do(tmp_path)
    assert job.found["predictions"] >= 2048
    verified = {(r["address"], r["channel"]): r["loss_change"] for r in job.sweep if r["method"] == "verified"}
    order = sorted(verified, key=verified.get, reverse=True)
    assert [job.found[name][:2] for name in ("entry", "runner_up")] == order[:2]
    worst = job.found["loss_change"]
    assert worst.value == verified[order[0]] > 0 and worst.low < worst.value < worst.high
    assert_summary_agrees(job)

    before, after = job.found["replies"]
    assert before.strip() and after.strip() and before != after
    original = sha256(demo.default_model())
    assert f"SHA-256 {original[:16]}... equals the original's" in job.said
    sv.revert(tmp_path / "edited.gguf", tmp_path / "worst-entry.sv.json", tmp_path / "back.gguf")
    assert job.found["sha256"] == original == sha256(tmp_path / "back.gguf") != sha256(tmp_path / "edited.gguf")
    for name in ("edited.gguf", "back.gguf"):
        (tmp_path / name).unlink()


def test_a_demo_writes_over_nothing_but_an_earlier_demo(job, tiny_models, tmp_path):
    mine, linked, earlier = tmp_path / "mine", tmp_path / "linked", tmp_path / "earlier"
    mine.mkdir()
    earlier.mkdir()
    (mine / "edited.gguf").write_bytes(b"GGUF, and mine")
    (mine / "results.h5").write_bytes(b"mine too")
    linked.symlink_to(mine)
    shutil.copy(job.folder / "results.h5", earlier)
    folder = tiny_models["llama"].file
    shutil.copytree(folder, earlier, dirs_exist_ok=True)
    (tmp_path / "link.safetensors").symlink_to(earlier / "model.safetensors")
    before = {file: file.read_bytes() for file in (*mine.iterdir(), *earlier.iterdir())}
    for model, output, says in [
        (mine / "edited.gguf", mine, "the model lies"),
        (mine / "edited.gguf", linked, "the model lies"),
        (earlier / "model.safetensors", earlier, "the model lies"),
        (tmp_path / "link.safetensors", earlier, "the model lies"),
        (folder / "model.safetensors", mine, "no demo wrote"),
        (folder / "model.safetensors", mine / "results.h5", "no folder"),
    ]:
        with pytest.raises(sv.FileError, match=says):
            demo.run(model=model, output=output)
    assert {file: file.read_bytes() for file in (*mine.iterdir(), *earlier.iterdir())} == before
    # Over an earlier demo it goes on: to the tokenizer, which this model lacks.
    with pytest.raises(sv.FileError, match="no tokenizer"):
        demo.run(model=folder / "model.safetensors", output=job.folder)


@pytest.mark.parametrize(
    ("changes", "worst", "runner_up", "leads", "best", "helps"),
    [
        ([(0.1, 0.05, 0.15), (0.9, 0.8, 1.0), (-0.3, -0.35, -0.25)], 1, 0, True, 2, True),
        ([(0.1, 0.05, 0.15), (0.9, 0.1, 1.7), (-0.3, -0.61, 0.01)], 1, 0, False, 2, False),  # both overlap
        ([(0.9, 0.5, 1.3), (0.4, 0.3, 0.5), (0.1, 0.0, 0.2)], 0, 1, False, 2, False),  # touching; none below 0
        ([(0.4, None, None), (0.9, None, None), (-0.3, None, None)], 1, 0, False, 2, False),
        ([(0.4, 0.3, 0.5), (0.4, 0.3, 0.5), (-0.1, -0.11, -0.09)], 0, 1, False, 2, True),  # a tie: the first
        # Sure alone and as the better of two (1.96 -> 2.24), not as the best of three (2.39) or more.
        ([(0.9, 0.8, 1.0), (-0.115, -0.215, -0.015)], 0, 1, True, 1, True),
        ([(0.9, 0.8, 1.0), (0.1, 0, 0.2), (-0.115, -0.215, -0.015)], 0, 1, True, 2, False),
    ],
)
def test_the_decision(changes, worst, runner_up, leads, best, helps):
    assert demo.decide([Figure(*c) for c in changes]) == (worst, runner_up, leads, best, helps)


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
    assert job.found["loss_change"].value == pytest.approx(change[order[0]], abs=1e-4) and change[order[0]] > 0
    assert job.found["helps"] is None, "63 predictions give no interval, so no help is sure"


def test_finalists_led_the_screening_and_candidates_the_saliency(job, smollm2_gguf):
    rows = {m: [r for r in job.sweep if r["method"] == m] for m in ("screened", "verified")}
    screened = sorted(rows["screened"], key=lambda row: -row["loss_change"])
    entries = [(row["address"], row["channel"]) for row in screened]
    assert 4 <= len(entries) == len(set(entries)) <= 4 * 2
    assert {(r["address"], r["channel"]) for r in rows["verified"]} == {*entries[:3], *entries[-2:]}
    scales = sv.load(smollm2_gguf).scales
    places = [(g.address, j) for g in scales for j in range(g.width)]
    far = np.concatenate([abs(g.effective - g.effective.mean()) / g.effective.std() for g in scales])
    for leader in (job.predicted.argmax(), job.predicted.argmin(), abs(job.predicted).argmax(), far.argmax()):
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
