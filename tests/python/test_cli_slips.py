"""Slips at a shell: names that are no UTF-8, channels without --channels, a folder that is not there, a full disk."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np
import pytest
import scalevec as sv
from scalevec import cli
from scalevec.measuring import Measurement
from tiny_training import experiment


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.out, said.err


@pytest.fixture
def model(tiny_models) -> pathlib.Path:
    return tiny_models["llama"].file


def test_words_that_are_no_text(capsys, model, tmp_path):
    word = os.fsdecode(b"x\xff")
    for arguments in (
        ["inspect", word], ["inspect", model, word], ["edit", model, "final_norm", "ablate", "-o", tmp_path / "e", "--note", word],
    ):  # fmt: skip
        status, out, err = run(capsys, *arguments)
        assert status == 2 and out == "" and "UTF-8" in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(sv.FileError) as caught:
        sv.load(tmp_path / word)
    assert caught.value.code == "E_PATH" and caught.value.file.endswith(word)
    # A model that is called so is one as any other.
    (tmp_path / word).symlink_to(model)
    status, out, _ = run(capsys, "inspect", tmp_path / word, "--json")
    assert status == 0 and len(json.loads(out)) == 7


def test_channels_that_are_named_are_shown(capsys, model):
    status, named, _ = run(capsys, "inspect", model, "final_norm@2,5")
    assert status == 0
    assert run(capsys, "inspect", model, "final_norm@2,5", "--channels") == (0, named, "")
    assert len([line for line in named.splitlines() if "final_norm" in line]) == 2
    rows = json.loads(run(capsys, "inspect", model, "final_norm@2,5", "--json")[1])
    assert [c["channel"] for c in rows[0]["channels"]] == [2, 5]
    assert "channels" not in json.loads(run(capsys, "inspect", model, "final_norm", "--json")[1])[0]


def test_a_model_without_vectors_has_an_empty_table(capsys, tmp_path):
    sv._scalevec.Training(experiment(strategy="removal")).save_model(tmp_path / "model")
    status, out, err = run(capsys, "inspect", tmp_path / "model")
    assert status == 0 and "0 scale vectors, 0 entries" in out and err == ""


def test_a_selector_that_says_nothing_is_not_all(capsys, model):
    status, out, err = run(capsys, "inspect", model, "")
    assert status == 1 and out == "" and "E_ADDR" in err and len(err.splitlines()) == 1


def test_figures_outlive_the_file_that_cannot_be_written(capsys, model, tmp_path, monkeypatch):
    edit, ids = tmp_path / "e.sv.json", tmp_path / "ids.npy"
    assert run(capsys, "edit", model, "final_norm@2", "ablate", "-o", edit)[0] == 0
    np.save(ids, np.arange(1, 20))
    arguments = ["measure", model, "--edit", edit, "--ids", ids, "--context", 8, "--json"]
    status, out, err = run(capsys, *arguments, "-o", tmp_path / "no folder/out.h5")
    assert status == 1 and out == "" and "no such folder" in err

    def full(self: Measurement, path: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Measurement, "save", full)
    status, out, err = run(capsys, *arguments, "-o", tmp_path / "out.h5")
    assert status == 1 and "No space left" in err
    assert json.loads(out)["kl"]["value"] > 0


@pytest.mark.parametrize(
    "words", [["--version"], ["inspect", "--version"], ["measure", "--version"], ["trace", "list", "--version"]]
)
def test_every_command_says_its_version(capsys, words):
    status, out, _ = run(capsys, *words)
    assert status == 0 and out.startswith(f"scalevec {sv.__version__} ")


def test_a_run_of_an_experiment_that_fails_is_one_line(capsys, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        "seeds = [0]\n[arms.exploding]\n"
        'model = { preset = "nano", width = 16, layers = 1, head_dim = 8, init_std = 1e30 }\n'
        "data = { vocabulary = 11, context = 8, batch = 4 }\n"
    )
    status, out, err = run(capsys, "experiment", plan, "-o", tmp_path / "out", "--quiet")
    assert status == 1 and out == "" and len(err.splitlines()) == 1
    assert "exploding, seed 0" in err and "not finite" in err
