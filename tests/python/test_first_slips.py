"""What a newcomer meets first: each is told, none changes an answer unsaid."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import scalevec as sv
import torch
from own_models import command
from tiny_training import loop, tiny_llama


@pytest.fixture(scope="module")
def file(tiny_models) -> pathlib.Path:
    return tiny_models["llama"].file


@pytest.mark.parametrize("change", [("set", "1e-46"), ("set", "-1e-300"), ("rescale", "1e-50")])
def test_a_value_that_would_become_zero_is_refused(file, tmp_path, change) -> None:
    done = command("edit", file, "final_norm@3", *change, "-o", tmp_path / "e.sv.json")
    assert done.returncode == 1 and "E_VALUE" in done.stderr and "ablate" in done.stderr
    assert list(tmp_path.iterdir()) == []
    # The smallest that float32 has is kept, and 0 is 0.
    for value, stored in (("1.4e-45", 1.401298464324817e-45), ("0", 0.0)):
        name = tmp_path / f"{value}.sv.json"
        assert command("edit", file, "final_norm@3", "set", value, "-o", name).returncode == 0
        model = sv.load(file)
        model.apply(name)
        assert model.scales["final_norm"].effective[3] == stored


@pytest.mark.parametrize("option", [("--seed", "3"), ("--dtype", "float64")])
def test_what_a_file_says_is_no_option(tmp_path, option) -> None:
    (tmp_path / "e.toml").write_text("[train]\nsteps = 1\n")
    for name in ("train", "experiment"):
        done = command(name, tmp_path / "e.toml", "-o", tmp_path / "out", *option)
        assert done.returncode == 2 and option[0] in done.stderr and "seed" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_cannot_be_trained_on_leaves_no_run(tmp_path) -> None:
    (tmp_path / "e.toml").write_text('[data]\ncorpus = "corpus"\ncontext = 16\nbatch = 2\n[train]\nsteps = 1\n')
    done = command("train", tmp_path / "e.toml", "-o", tmp_path / "run")
    assert done.returncode == 1 and "E_PATH" in done.stderr and "scalevec data build" in done.stderr
    text = tmp_path / "text"
    text.mkdir()
    (text / "one.txt").write_text("one document, which is on one side " * 200)
    made = command("data", "build", text, "--vocab", 260, "--validation", 0.0, "-o", tmp_path / "corpus")
    if made.returncode == 0:
        done = command("train", tmp_path / "e.toml", "-o", tmp_path / "run")
        assert done.returncode == 1 and "validate" in done.stderr and "--validation" in done.stderr
    else:
        assert "validation" in made.stderr
    assert not (tmp_path / "run").exists()


def test_a_trace_that_is_not_there_is_not_gone_on_with(tmp_path) -> None:
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sv.trace(model, optimizer, tmp_path / "a.h5", every=1) as tracer:
        loop(model, [optimizer], tracer, steps=2)
        state = tracer.state_dict()
    with pytest.raises(OSError, match="first=2"):
        sv.trace(model, optimizer, tmp_path / "b.h5", every=1, resume=state)
    trace = sv.open_trace(tmp_path / "a.h5")
    with pytest.raises(LookupError, match=r"layers\.0\.attn\.input_norm, layers\.0\.mlp\.input_norm"):
        trace["effective", "layers.0.**"]


def test_a_figure_is_compared_and_printed_as_a_number(file) -> None:
    model = sv.load(file)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 60, 200))
    with model.edit() as edit:
        edit.rescale("final_norm", 0.5)
        change = sv.measure(model, ids, context=64)
    kl = float(change.kl)
    assert kl > 0 and change.kl > kl / 2 and change.kl < 2 * kl and change.kl >= kl and change.kl <= kl
    assert f"{change.kl:.3e}" == f"{kl:.3e}" and f"{change.kl}" == str(change.kl)
