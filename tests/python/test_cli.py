"""The command line as a user meets it: output, exit status, one line for a mistake, files on disk."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("smollm2_gguf")


def scalevec(*arguments, **options):
    """Runs the command in a process of its own, as a pipe sees it."""
    words = [str(a) for a in arguments]
    return subprocess.run(
        [sys.executable, "-m", "scalevec.cli", *words], capture_output=True, text=True, timeout=300, **options
    )


def ok(*arguments):
    done = scalevec(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(status, *arguments):
    """The command fails with this status, one line on stderr, no traceback, nothing on stdout."""
    done = scalevec(*arguments)
    assert done.returncode == status, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if status == 1:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def ids_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(20, 20000, 96))
    return path


@pytest.fixture(scope="module")
def edit_file(tmp_path_factory, smollm2_gguf):
    path = tmp_path_factory.mktemp("edit") / "e.sv.json"
    ok("edit", smollm2_gguf, "layers.{0..2}.mlp.input_norm@5,40:44", "rescale", "0.5", "-o", path)
    return path


def test_inspect_json_agrees_with_the_gguf_package(smollm2_gguf):
    from gguf import GGUFReader

    rows = json.loads(ok("inspect", smollm2_gguf, "--json"))
    assert len(rows) == 61
    tensors = {t.name: t.data for t in GGUFReader(smollm2_gguf).tensors}
    for row in rows:
        assert {
            "address",
            "native",
            "role",
            "kind",
            "eps",
            "offset",
            "width",
            "consumers",
            "mean",
            "min",
            "max",
        } <= set(row)
        values = tensors[row["native"]].astype(np.float64)
        assert row["width"] == values.size
        # The mean is a sum of 576 numbers in float64: rounding stays below width * eps of their mean magnitude.
        assert abs(row["mean"] - values.mean()) <= 576 * 2.2e-16 * np.abs(values).mean()
        assert (row["min"], row["max"]) == (values.min(), values.max())


def test_inspect_in_a_pipe_is_plain_and_selects(smollm2_gguf):
    text = ok("inspect", smollm2_gguf, "layers.{0..1}.mlp.*")
    assert "\x1b" not in text
    assert "layers.0.mlp.input_norm" in text and "blk.1.ffn_norm" in text and "layers.2." not in text
    values = json.loads(ok("inspect", smollm2_gguf, "final_norm@17,40:42", "--channels", "--json"))
    assert [c["channel"] for c in values[0]["channels"]] == [17, 40, 41]


def test_a_shell_that_expanded_the_braces_is_explained(smollm2_gguf):
    message = refused(2, "inspect", smollm2_gguf, "layers.0.attn.input_norm", "layers.1.attn.input_norm")
    assert "quotes" in message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inspect", "{model}", "layers.0.atn.input_norm"], "layers.0.attn.input_norm"),
        (["inspect", "{model}", "layers.{28..31}.mlp.input_norm"], "29"),
        (["inspect", "HuggingFaceTB/SmolLM2-135M"], "local path"),
        (["edit", "{model}", "final_norm@576", "ablate", "-o", "{new}"], "576"),
        (["edit", "{model}", "final_norm", "rescale", "1.0", "-o", "{new}"], "E_NO_EFFECT"),
        (["edit", "{model}", "final_norm", "set", "nan", "-o", "{new}"], "E_VALUE"),
        (["export", "{model}", "--edit", "{missing}", "-o", "{new}"], "missing.sv.json"),
    ],
)
def test_a_mistake_is_one_clear_line(smollm2_gguf, tmp_path, words, says):
    names = {"{model}": smollm2_gguf, "{new}": tmp_path / "new", "{missing}": tmp_path / "missing.sv.json"}
    message = refused(1, *[names.get(w, w) for w in words])
    assert says in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["edit", "{model}", "final_norm", "rescale", "-o", "{new}"],
        ["edit", "{model}", "final_norm", "rescal", "0.5", "-o", "{new}"],
        ["edit", "{model}", "final_norm", "ablate", "two", "-o", "{new}"],
        ["edit", "{model}", "final_norm", "ablate"],
        ["edit", "{model}", "final_norm", "ablate", "-o", "{new}", "--apend"],
        ["measure", "{model}", "--edit", "{edit}"],
        ["nonsense"],
    ],
)
def test_a_command_put_wrongly_is_status_two(smollm2_gguf, edit_file, tmp_path, words):
    names = {"model": smollm2_gguf, "new": tmp_path / "new", "edit": edit_file}
    refused(2, *[w.format(**names) for w in words])


def test_edit_append_and_show(smollm2_gguf, edit_file, tmp_path):
    path = tmp_path / "two.sv.json"
    path.write_bytes(edit_file.read_bytes())
    assert "exists" in refused(2, "edit", smollm2_gguf, "final_norm@3", "set", "-1.5", "-o", path)
    ok("edit", smollm2_gguf, "final_norm@3", "set", "-1.5", "-o", path, "--append")
    text = ok("show", path)
    assert "rescale" in text and "set" in text and "final_norm" in text
    content = json.loads(ok("show", path, "--json"))
    assert len(content["operations"]) == 2
    assert {v["address"] for v in content["vectors"]} == {
        *(f"layers.{i}.mlp.input_norm" for i in range(3)),
        "final_norm",
    }


def test_export_changes_only_the_edited_bytes_and_revert_restores_them(smollm2_gguf, edit_file, tmp_path):
    edited, back = tmp_path / "edited.gguf", tmp_path / "back.gguf"
    ok("export", smollm2_gguf, "--edit", edit_file, "-o", edited)
    a, b = np.memmap(smollm2_gguf, np.uint8, "r"), np.memmap(edited, np.uint8, "r")
    different = np.flatnonzero(a != b)
    assert 0 < different.size <= 3 * 5 * 4  # three vectors, five channels, four bytes each
    assert "E_PATH" in refused(1, "export", smollm2_gguf, "--edit", edit_file, "-o", edited)
    assert "E_" in refused(1, "export", edited, "--edit", edit_file, "-o", tmp_path / "twice.gguf")
    ok("revert", edited, "--edit", edit_file, "-o", back)
    assert sha256(back) == sha256(smollm2_gguf)


def test_measure_json_and_results_file(smollm2_gguf, edit_file, ids_file, tmp_path):
    import h5py

    results = tmp_path / "out.h5"
    text = ok(
        "measure", smollm2_gguf, "--edit", edit_file, "--ids", ids_file, "--context", "64", "--json", "-o", results
    )
    figures = json.loads(text)
    assert figures["predictions"] == 63 + 31
    for name in ("loss_base", "loss_edited", "loss_change", "kl", "flips"):
        assert set(figures[name]) >= {"value", "low", "high"}
        assert figures[name]["low"] is None  # under 20 chunks of 64 predictions
    assert figures["kl"]["value"] > 1e-6  # the edit moved the output
    change = figures["loss_edited"]["value"] - figures["loss_base"]["value"]
    assert abs(figures["loss_change"]["value"] - change) < 1e-9
    with h5py.File(results) as file:
        assert file.attrs["schema"] == 1 and bool(file.attrs["complete"])


def test_generate_before_and_after(smollm2_gguf, tmp_path):
    path = tmp_path / "strong.sv.json"
    ok("edit", smollm2_gguf, "layers.{0..3}.*.input_norm", "ablate", "zero", "-o", path)
    said = json.loads(
        ok(
            "generate",
            smollm2_gguf,
            "--edit",
            path,
            "--prompt",
            "The capital of France is",
            "--max-tokens",
            "8",
            "--json",
        )
    )
    assert "Paris" in said["before"]
    assert said["after"] != said["before"]


def test_version_and_help():
    assert ok("--version").startswith("scalevec 0.")
    assert "inspect" in ok("--help")
