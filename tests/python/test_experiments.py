"""Experiments: plans, runs that go on, paired comparisons."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import scalevec
import xarray
from scalevec import experiments

ROOT = pathlib.Path(__file__).resolve().parents[2]

PLAN = """
name = "tiny"
seeds = [0, 1, 2]
baseline = "standard"
[base.model]
preset = "nano"
width = 16
layers = 1
head_dim = 8
[base.data]
vocabulary = 11
context = 8
batch = 4
[base.train]
steps = 4
validation_windows = 8
[arms.standard]
[arms.twin]
[arms.removal]
model.strategy = "removal"
"""


def test_pairs_are_compared_by_students_t() -> None:
    # By hand: differences 1, 2, 3; mean 2, sd 1, t(2) = 4.303, half width 4.303 / sqrt(3).
    middle, low, high = experiments.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert middle == 2.0
    assert low == pytest.approx(2 - 4.303 / np.sqrt(3)) and high == pytest.approx(2 + 4.303 / np.sqrt(3))
    assert experiments.paired([1.0], [3.0]) == (-2.0, None, None)
    # The table of quantiles against samples: 95 % of intervals of normal differences hold their mean.
    random = np.random.default_rng(0)
    for n in (3, 5, 31):
        held = 0
        for _ in range(4000):
            _, low, high = experiments.paired(random.normal(size=n), np.zeros(n))
            held += low <= 0 <= high
        assert abs(held / 4000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)


def test_a_plan_has_an_arm_for_each_point_of_the_grid(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN + "[grid]\noptimizer.learning_rate = [0.001, 0.004]\n")
    plan = experiments.read_plan(file)
    assert list(plan.arms) == [
        f"{arm}, learning_rate {rate}" for rate in (0.001, 0.004) for arm in ("standard", "twin", "removal")
    ]
    assert plan.baseline["removal, learning_rate 0.004"] == "standard, learning_rate 0.004"
    file.write_text(
        PLAN + '[grid]\noptimizer.rule = ["adamw", "muon"]\ntrain.steps = [4, 8]\nmodel.tied_head = [true]\n'
    )
    assert [arm for arm in experiments.read_plan(file).arms if arm.startswith("twin")] == [
        f"twin, rule {rule}, steps {steps}, tied_head true" for rule in ("adamw", "muon") for steps in (4, 8)
    ]
    file.write_text(PLAN + 'against = "twin"\n')  # of the last arm, removal
    assert experiments.read_plan(file).baseline == {"standard": None, "twin": "standard", "removal": "twin"}
    made = experiments.experiment_of(plan.arms["removal, learning_rate 0.004"], 2).toml()
    assert 'strategy = "removal"' in made and "learning_rate = 0.004" in made and "seed = 2" in made


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("seeds = [0, 1, 2]", "seeds = [0, 0]"), "twice"),
        (("seeds = [0, 1, 2]", "seeds = []"), "seeds"),
        (("seeds = [0, 1, 2]", "seeds = [true]"), "seeds"),
        (("[arms.twin]", '[arms."a b"]\n[arms.a_b]\n[arms.twin]'), "share the folder 'a_b'"),
        (("[arms.twin]", "[grid]\noptimizer.learning_rate = [0.1, 0.1000000001]\n[arms.twin]"), "read alike"),
        (('baseline = "standard"', 'baseline = "none"'), "none"),
        (('strategy = "removal"', 'strategy = "remove"'), "model.strategy: .*removal.* arm removal"),
        (('strategy = "removal"', 'preset = "giant"'), "model.preset: .*nano.* arm removal"),
        (("[arms.twin]", "[arms.twin]\nmodel.head_dim = 5"), "E_CONFIG: experiment: model: .* arm twin"),
        (("[arms.twin]", "[arms.twin]\nschedule.warmup = 4"), "schedule.warmup is 4 .* arm twin, expected fewer than"),
        (
            ("[base.model]", "[base.trace]\nevery = 2\n[base.model]"),
            "arm removal, expected 0: .* removal has no scale vectors",
        ),
        (("[arms.twin]", '[arms.twin]\nagainst = "other"'), "other"),
        (("steps = 4", "stepps = 4"), "train.steps"),
        (("[base.model]", "[extra]\na = 1\n[base.model]"), "extra"),
        (('name = "tiny"', "name ="), "E_FORMAT: .*line 2"),
        (("[base.model]", "[model]"), "unknown 'model'"),
        (('name = "tiny"', "name = 3"), "name is to be a text"),
        (('baseline = "standard"', 'baseline = ["standard"]'), "baseline is to be a text"),
        (("[arms.twin]", '[arms.".."]\n[arms.twin]'), "cannot be called"),
        (("[arms.twin]", '[arms."results.h5"]\n[arms.twin]'), "cannot be called"),
        (("[arms.twin]", "[arms.twin]\nagainst = 3"), "no arm"),
        (("[base.model]", "grid = 3\n[base.model]"), "grid is to be a table"),
        (("[arms.twin]", "[arms.twin]\nseed = 3"), "arms.twin.seed would be lost"),
        (("[base.model]", '[base]\nname = "x"\n[base.model]'), "base.name would be lost"),
        (("[arms.standard]", "[arms]\nodd = 3\n[arms.standard]"), "tables"),
    ],
)
def test_what_a_plan_is_refused_for(tmp_path: pathlib.Path, change: tuple[str, str], says: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN.replace(*change))
    with pytest.raises(ValueError, match=says) as caught:
        experiments.read_plan(file)
    assert str(file) in str(caught.value)


def test_a_plan_and_a_training_are_told_apart(tmp_path: pathlib.Path) -> None:
    plan, one = tmp_path / "plan.toml", tmp_path / "one.toml"
    plan.write_text(PLAN)
    with pytest.raises(
        ValueError, match=r"is a plan of several trainings; run it with `scalevec experiment`.*plan\.toml"
    ):
        scalevec.train(plan, tmp_path / "out")
    one.write_text("seed = 3\n[train]\nsteps = 4\n")
    with pytest.raises(ValueError, match=r"one\.toml: .* one model is trained; run it with `scalevec train`"):
        experiments.read_plan(one)


def test_a_corpus_that_is_not_there_is_told_before_anything_is_trained(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN.replace("[arms.twin]", '[arms.twin]\ndata.corpus = "none"'))
    with pytest.raises(OSError, match=r"E_PATH: experiment: arm twin: there is no corpus.*none") as caught:
        experiments.run(experiments.read_plan(file), tmp_path / "out", corpus_beside=tmp_path)
    assert caught.value.file.startswith(str(tmp_path / "none")) and not (tmp_path / "out").exists()


def test_arms_are_trained_compared_and_gone_on_with(tmp_path: pathlib.Path) -> None:
    file, output = tmp_path / "plan.toml", tmp_path / "out"
    file.write_text(PLAN)
    words = [sys.executable, "-m", "scalevec", "experiment", str(file), "-o", str(output), "--jobs", "2", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = {row["arm"]: row for row in json.loads(done.stdout)}
    assert rows["standard"]["baseline"] is None and rows["standard"]["seeds"] == 3
    # The same arm under another name is the same training: the no-op control of the whole chain.
    assert rows["twin"]["difference"] == 0.0 and not rows["twin"]["resolved"]
    assert rows["removal"]["difference"] != 0.0
    own = list(rows["removal"]["losses"].values())
    assert [int(seed) for seed in rows["removal"]["losses"]] == [0, 1, 2] and len(set(own)) == 3
    middle, low, high = (rows["removal"][name] for name in ("loss", "loss_low", "loss_high"))
    half = 4.303 * np.std(own, ddof=1) / np.sqrt(3)
    assert (middle, low, high) == pytest.approx((np.mean(own), np.mean(own) - half, np.mean(own) + half), rel=1e-12)
    assert rows["removal"]["low"] < rows["removal"]["difference"] < rows["removal"]["high"]
    with h5py.File(output / "results.h5") as results:
        assert len(results["runs/seed"]) == 9
        losses = results["runs/validation_loss"][()]
        arms = [a.decode() for a in results["runs/arm"][()]]
        mean = np.mean([loss for loss, arm in zip(losses, arms, strict=True) if arm == "removal"])
        assert mean == pytest.approx(rows["removal"]["loss"], rel=1e-12)
        assert results.attrs["experiment"] == "tiny" and results.attrs["schema"] == 1
    with xarray.open_dataset(output / "results.h5", group="comparison", engine="h5netcdf") as table:
        assert table.sizes["row"] == len(rows) and table["loss"].attrs["units"] == "nats / prediction"
        for at, arm in enumerate(table["arm"].values):
            assert json.loads(str(table["fields"].values[at])) == experiments.read_plan(file).arms[arm]
            assert bool(table["resolved"].values[at]) == rows[arm]["resolved"]
            for name in ("loss", "difference", "low", "high"):
                expected = np.nan if rows[arm][name] is None else rows[arm][name]
                np.testing.assert_equal(table[name].values[at], expected)
    assert (output / "comparison.png").stat().st_size > 5000

    before = {p: p.stat().st_mtime_ns for p in output.rglob("model/config.json")}
    assert len(before) == 9
    again = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0 and json.loads(again.stdout) == json.loads(done.stdout)
    assert before == {p: p.stat().st_mtime_ns for p in output.rglob("model/config.json")}

    # Nor do finished runs pass for those of a plan that says something else now.
    file.write_text(PLAN.replace("steps = 4", "steps = 5"))
    other = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert other.returncode == 1 and "train.steps = 4, and the plan says 5" in other.stderr
    assert "Traceback" not in other.stderr and other.stdout == ""


def test_a_run_whose_trace_was_left_unmerged_is_gone_on_with(tmp_path: pathlib.Path) -> None:
    file, folder = tmp_path / "plan.toml", tmp_path / "out/standard/seed-0"
    traced = PLAN.replace("[base.train]", "[base.trace]\nevery = 1\n[base.train]")
    file.write_text(traced.replace("[0, 1, 2]", "[0]").replace('"removal"', '"hg"'))  # which has vectors to trace
    plan = experiments.read_plan(file)
    named = plan.arms["standard"] | {"name": "tiny: standard"}

    def late(what: str, done: int, total: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.1)  # after which merging asks again

    folder.parent.mkdir(parents=True)
    ended = scalevec.train(experiments.experiment_of(named, 0), folder, progress=late)
    assert ended.finished and "not merged" in ended.log_error and (folder / "trace.h5.live").exists()
    losses = experiments.run(plan, tmp_path / "out")
    assert losses["standard", 0] == ended.validation_loss
    assert (folder / "trace.h5").is_file() and not (folder / "trace.h5.live").exists()


def test_finished_runs_of_another_corpus_are_refused_before_anything_is_trained(tmp_path: pathlib.Path) -> None:
    plan = PLAN.replace("vocabulary = 11", 'corpus = "corpus"').replace("seeds = [0, 1, 2]", "seeds = [0]")
    file, output = tmp_path / "plan.toml", tmp_path / "out"
    file.write_text(plan.replace("[arms.twin]", "[arms.more]\n[arms.twin]"))

    def corpus(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        for i in range(40):
            (tmp_path / name / f"{i}.txt").write_text(f"{text} {i} " * 40)
        words = ["data", "build", str(tmp_path / name), "--vocab", "260", "--validation", "0.3"]
        done = subprocess.run(
            [sys.executable, "-m", "scalevec", *words, "-o", str(tmp_path / f"corpus-{name}")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    corpus("a", "one fish two fish")
    corpus("b", "red fish blue fish")
    (tmp_path / "corpus-a").rename(tmp_path / "corpus")
    read = experiments.read_plan(file)
    only = experiments.Plan(read.name, read.seeds, {"twin": read.arms["twin"]}, {"twin": None})
    losses = experiments.run(only, output, corpus_beside=tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copytree(tmp_path / "corpus", moved / "corpus")
    assert experiments.run(only, output, corpus_beside=moved) == losses  # the same corpus, in another place
    shutil.rmtree(tmp_path / "corpus")
    (tmp_path / "corpus-b").rename(tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"data\.corpus"):
        experiments.run(read, output, corpus_beside=tmp_path)
    # None is the synthetic source.
    file.write_text(plan.replace('corpus = "corpus"\n', ""))
    with pytest.raises(ValueError, match=r"data\.corpus"):
        experiments.run(experiments.read_plan(file), output)
    assert [folder.name for folder in output.iterdir()] == ["twin"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_run_with_a_checkpoint(tmp_path: pathlib.Path, kind: signal.Signals) -> None:
    file, output = tmp_path / "plan.toml", tmp_path / "out"
    file.write_text(PLAN.replace("steps = 4", "steps = 1000000"))
    words = [sys.executable, "-m", "scalevec", "experiment", str(file), "-o", str(output), "--jobs", "2", "--quiet"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folders = [output / arm / "seed-0" for arm in ("standard", "twin")]
    deadline = time.monotonic() + 120
    while not all((folder / "experiment.toml").exists() for folder in folders):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(kind)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + kind and "Traceback" not in said and "the same command goes on" in said
    for folder in folders:
        assert list((folder / "checkpoints").glob("step-*")) and not (folder / "model").exists()
    for command in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended since
            assert os.fsencode(output) not in command.read_bytes()


@pytest.mark.parametrize("file", sorted((ROOT / "examples/experiments").glob("*.toml")), ids=lambda file: file.stem)
def test_the_example_experiments_are_plans(file: pathlib.Path) -> None:
    plan = experiments.read_plan(file)
    assert len(plan.seeds) >= 3 and len(plan.arms) >= 2
    assert sum(baseline is None for baseline in plan.baseline.values()) >= 1
    texts = [experiments.experiment_of(fields, 0).toml() for fields in plan.arms.values()]
    assert len(set(texts)) == len(texts)  # arms differ
