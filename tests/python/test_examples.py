"""The example programs, run as their readers would run them."""

import pathlib
import re
import subprocess
import sys

import h5py
import numpy as np
import scalevec as sv
from safetensors.numpy import load_file


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inspect_lists_what_the_file_holds(program, smollm2_gguf):
    from gguf import GGUFReader

    lines = run(program("example_inspect"), smollm2_gguf, "role:final").splitlines()
    assert len(lines) == 2  # the head and one vector
    address, role, width, mean, low, high, native = lines[1].split()
    (values,) = [t.data.astype(np.float64) for t in GGUFReader(smollm2_gguf).tensors if t.name == native]
    assert (address, role, int(width)) == ("final_norm", "final", values.size)
    for printed, value in ((mean, values.mean()), (low, values.min()), (high, values.max())):
        assert abs(float(printed) - value) <= 0.5e-4 + 1e-12  # four decimals


def test_inspect_refuses_in_one_line(program, smollm2_gguf):
    done = subprocess.run(
        [str(program("example_inspect")), str(smollm2_gguf), "finel_norm"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "final_norm" in done.stderr


def test_edit_and_measure_moves_the_model(program, smollm2_gguf):
    ids = np.random.default_rng(1).integers(20, 20000, 40)
    text = run(program("example_edit_and_measure"), smollm2_gguf, "layers.{0..29}.*.input_norm", "0.5", *ids)
    base, edited, kl, flips = map(float, re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", text))
    assert edited != base
    assert kl > 0.01 and flips > 0


def test_training_is_shown_by_role(tmp_path):
    """A few seconds of what `make train-demo` does in two minutes."""
    demo = pathlib.Path(__file__).resolve().parents[2] / "examples/train_demo.py"
    said = run(sys.executable, demo, "-o", tmp_path, "--seconds", "2")
    held = re.search(r"The gauge identity .* held in all ([\d,]+) channels of (\d+) rows .* residual is (\S+) of", said)
    assert held and int(held[1].replace(",", "")) >= 100 * int(held[2]) and 0 < float(held[3]) < 1e-5
    (folder,) = tmp_path.glob("run-*")
    with h5py.File(folder / "trace.h5") as file:
        magnitude = file["trace/magnitude"][()]
        roles = np.array([role.decode() for role in file["sites/role"][()]])
    assert magnitude.shape == (len(magnitude), len(roles)) and len(magnitude) > 3
    printed = dict(re.findall(r"(\w+) +\S+ +(\S+)$", said.split("effective")[0], flags=re.M))
    for role in {"input", "output"}:
        assert printed[role] == f"{np.median(magnitude[-1, roles == role]):.3g}"
    assert len(set(magnitude[:, 0])) > 1  # trained
    assert (folder / "trace.png").stat().st_size > 10_000


def test_a_program_trains_as_python_does(program, tmp_path):
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(
        """
        name = "tiny"
        [model]
        preset = "nano"
        strategy = "unified"
        width = 16
        layers = 1
        head_dim = 8
        [data]
        vocabulary = 11
        context = 8
        batch = 4
        [train]
        steps = 6
        validate_every = 3
        validation_windows = 8
        """
    )
    said = run(program("example_train"), experiment, tmp_path / "run")
    assert said.splitlines()[-1] == "finished after step 6"
    losses = dict(re.findall(r"^step +(\d+): .* validation (\S+) nats", said, flags=re.M))
    ours = sv.train(sv.Experiment.read(experiment), tmp_path / "python")
    assert losses["6"] == f"{ours.validation_loss:.4f}" != losses["3"]
    written = [load_file(folder / "model/model.safetensors") for folder in (tmp_path / "run", tmp_path / "python")]
    assert written[0].keys() == written[1].keys()
    for name, values in written[0].items():
        np.testing.assert_allclose(values, written[1][name], rtol=1e-5, atol=1e-7)  # the number of threads may differ
    done = subprocess.run(
        [str(program("example_train")), str(tmp_path / "none.toml"), str(tmp_path / "x")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("E_PATH")
