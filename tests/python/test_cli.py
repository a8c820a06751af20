"""The command line as a user meets it: output, exit status, one line for a mistake, files on disk."""

import contextlib
import hashlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scalevec as sv
import torch
from scalevec import cli

pytestmark = pytest.mark.usefixtures("smollm2_gguf")


def scalevec(*arguments, **options):
    """Runs the command in a process of its own, as a pipe sees it."""
    words = [str(a) for a in arguments]
    return subprocess.run(
        [sys.executable, "-m", "scalevec", *words], capture_output=True, text=True, timeout=300, **options
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


def printed(*arguments):
    """What a command prints, run in this process: no second start of torch."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main([str(a) for a in arguments]) == 0
    return said.getvalue()


def on_a_terminal(*arguments):
    """Runs the command as a person's terminal sees it: the exit status, and all that it wrote."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "scalevec", *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 1 << 16):
            said += part
    except OSError:  # how Linux says that nobody writes any more
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=300), said.decode()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def ids_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(20, 20000, 96))
    return path


@pytest.fixture(scope="module")
def wrong_files(tmp_path_factory):
    """Files that a user may give by mistake, by name."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty.npy").touch()
    np.save(folder / "scalar.npy", 3)
    np.savez(folder / "several.npz", ids=np.arange(9))
    (folder / "latin1.txt").write_text("café", encoding="latin-1")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def hub_model(tmp_path_factory, tiny_models):
    """A model as a hub's cache keeps it, all files links to elsewhere, with two things to warn of."""
    blobs, hub = (tmp_path_factory.mktemp(name) for name in ("blobs", "snapshot"))
    shutil.copytree(tiny_models["llama"].shards, blobs, dirs_exist_ok=True)
    config = json.loads((blobs / "config.json").read_text())
    (blobs / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "code.Model"}}))
    (blobs / "pytorch_model.bin").write_bytes(b"weights")
    for blob in blobs.iterdir():
        (hub / blob.name).symlink_to(blob)
    return hub


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
    asked = {"address", "native", "role", "kind", "eps", "offset", "width", "consumers", "mean", "min", "max"}
    for row in rows:
        assert set(row) >= asked
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


def test_the_table_says_what_the_json_says(tiny_models):
    """By name of the column: Gemma's offset is 1 and its eps is not."""
    model = tiny_models["gemma3"].file
    table, rows = printed("inspect", model), json.loads(printed("inspect", model, "--json"))
    heads, *lines = [line.split() for line in table.splitlines()[:-1]]
    assert len(lines) == len(rows) == 7 * 6 + 1
    for line, row in zip(lines, rows, strict=True):
        shown = dict(zip(heads, line, strict=True))
        assert shown.pop("consumers") == (",".join(row["consumers"]) or "-")
        for name, text in shown.items():
            if isinstance(row[name], str):
                assert text == row[name]
            else:
                assert float(text) == pytest.approx(row[name], rel=5e-4), name
    assert rows[0]["offset"] == 1 and rows[0]["eps"] < 1e-5


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
        (["generate", "{model}", "--edit", "{missing}", "--prompt", "A"], "missing.sv.json"),
        (["measure", "{model}", "--edit", "{edit}", "--ids", "{scalar}"], "E_SHAPE"),
        (["measure", "{model}", "--edit", "{edit}", "--text", "{latin1}"], "is not UTF-8"),
        (["demo", "{model}", "-o", "{new}", "--text", "{latin1}"], "is not UTF-8"),
    ],
)
def test_a_mistake_is_one_clear_line(smollm2_gguf, edit_file, wrong_files, tmp_path, words, says):
    names = {"model": smollm2_gguf, "new": tmp_path / "new", "missing": tmp_path / "missing.sv.json"}
    names |= {"edit": edit_file, **wrong_files}
    message = refused(1, *[names.get(w[1:-1], w) for w in words])
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
        ["measure", "{model}", "--edit", "{edit}", "--ids", "{empty}"],
        ["measure", "{model}", "--edit", "{edit}", "--ids", "{several}"],
        ["generate", "{model}", "--prompt", "A", "--seed", "-1"],
        ["generate", "{model}", "--prompt", "A", "--seed", str(2**63)],
        ["edit", "{model}", "--rebase", "{edit}", "-o", "{new}", "--append"],
        ["edit", "{model}", "--rebase", "{edit}", "-o", "{new}", "--allow-no-effect"],
        ["data", "build", "notes", "-o", "{new}", "--vocab", "256"],
        ["nonsense"],
    ],
)
def test_a_command_put_wrongly_is_status_two(smollm2_gguf, edit_file, wrong_files, tmp_path, words):
    names = {"model": smollm2_gguf, "new": tmp_path / "new", "edit": edit_file, **wrong_files}
    refused(2, *[w.format(**names) for w in words])
    assert not (tmp_path / "new").exists()


def test_a_demo_of_too_short_a_text_says_so(smollm2_gguf, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    done = scalevec("demo", smollm2_gguf, "-o", tmp_path / "out", "--text", text)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "tokens" in done.stderr


def test_links_out_of_a_folder_are_allowed_by_every_command_and_warnings_are_shown(hub_model, tmp_path):
    made, rebased, edited, back = (tmp_path / name for name in ("e.sv.json", "r.sv.json", "edited", "back"))
    for words, warnings in [
        (["inspect", hub_model, "--json"], ["auto_map"]),
        (["edit", hub_model, "final_norm@3", "rescale", "2", "-o", made], ["auto_map"]),
        (["edit", hub_model, "--rebase", made, "-o", rebased], ["auto_map"]),
        (["export", hub_model, "--edit", made, "-o", edited], ["auto_map", "pytorch_model.bin"]),
    ]:
        assert "link" in refused(1, *words)
        done = scalevec(*words, "--allow-links")
        assert done.returncode == 0, done.stderr
        said = done.stderr.splitlines()
        assert len(said) == len(warnings)
        assert all(line.startswith("warning: ") and what in line for line, what in zip(said, warnings, strict=True))
    ok("revert", edited, "--edit", made, "-o", back, "--allow-links")

    assert len(sv.inspect(hub_model, allow_links=True)) == 7
    assert sv.rebase(made, hub_model, allow_links=True) == sv.read_edit(made)
    sv.export(hub_model, made, tmp_path / "again", allow_links=True)
    sv.revert(tmp_path / "again", made, tmp_path / "back again", allow_links=True)
    for file in hub_model.iterdir():
        assert sha256(tmp_path / "back again" / file.name) == sha256(file)


def test_edit_append_and_show(smollm2_gguf, edit_file, tmp_path):
    path = tmp_path / "two.sv.json"
    ok("edit", smollm2_gguf, "--rebase", edit_file, "-o", path, "--note", "first")
    assert "exists" in refused(1, "edit", smollm2_gguf, "final_norm@3", "set", "-1.5", "-o", path)
    ok("edit", smollm2_gguf, "final_norm@3", "set", "-1.5", "-o", path, "--append", "--note", "second")
    text = ok("show", path)
    assert "rescale" in text and "set" in text and "final_norm" in text
    content = json.loads(ok("show", path, "--json"))
    assert len(content["operations"]) == 2
    assert content["note"] == "first; second"
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


def test_measure_shows_progress_and_a_table_on_a_terminal_and_plain_text_in_a_pipe(tiny_models, tmp_path):
    model, edit_file, ids_file = tiny_models["llama"].file, tmp_path / "e.sv.json", tmp_path / "ids.npy"
    with sv.load(model).edit() as edit:
        edit.rescale("final_norm@3", 2)
        edit.save(edit_file)
    np.save(ids_file, np.arange(96))
    words = ["measure", model, "--edit", edit_file, "--ids", ids_file, "--context", "48"]
    piped = scalevec(*words)
    assert piped.returncode == 0 and piped.stderr == ""
    status, shown = on_a_terminal(*words)
    assert status == 0
    assert "\x1b" not in piped.stdout and "━" not in piped.stdout
    progress, _, table = shown.rpartition("\x1b[1mvalue")  # a bold head
    assert "loading weights" in progress and "forward" in progress and "━" in progress
    assert "━" not in table
    lines = [re.split(r"\s{2,}", line.strip()) for line in piped.stdout.splitlines()]
    assert lines[0] == ["value", "95 % interval", "unit"] and len(lines) >= 1 + 9 + 2
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in table.splitlines()]
    assert [re.split(r"\s{2,}", line.strip()) for line in plain[1:]] == lines[1:]
    status, quiet = on_a_terminal(*words, "--quiet")
    assert status == 0 and "━" not in quiet and "\x1b[1mvalue" in quiet


COMMON = ["--dtype", "bfloat16", "--device", "cpu", "--threads", "1", "--seed", "3"]


def test_commands_that_compute_nothing_take_the_common_options(smollm2_gguf, tmp_path):
    made, edited, back = (tmp_path / name for name in ("e.sv.json", "edited.gguf", "back.gguf"))
    assert ok("inspect", smollm2_gguf, "final_norm", *COMMON) == ok("inspect", smollm2_gguf, "final_norm")
    ok("edit", smollm2_gguf, "final_norm@3", "set", "-1.5", "-o", made, *COMMON)
    assert ok("show", made, *COMMON) == ok("show", made)
    ok("export", smollm2_gguf, "--edit", made, "-o", edited, *COMMON)
    ok("revert", edited, "--edit", made, "-o", back, *COMMON)
    assert sha256(back) == sha256(smollm2_gguf)
    assert "abacus" in refused(2, "show", made, "--device", "abacus")
    assert "float8" in refused(2, "edit", smollm2_gguf, "final_norm@3", "set", "2", "-o", made, "--dtype", "float8")
    refused(2, "revert", edited, "--edit", made, "-o", tmp_path / "new", "--threads", "0")


def test_every_command_checks_the_common_options(smollm2_gguf, edit_file, tmp_path, capsys):
    new = tmp_path / "new"
    commands = {
        "inspect": [smollm2_gguf],
        "edit": [smollm2_gguf, "final_norm", "ablate", "-o", new],
        "show": [edit_file],
        "measure": [smollm2_gguf, "--edit", edit_file, "--text", "none.txt"],
        "generate": [smollm2_gguf, "--prompt", "A"],
        "export": [smollm2_gguf, "--edit", edit_file, "-o", new],
        "materialise": [smollm2_gguf, "-o", new],
        "revert": [smollm2_gguf, "--edit", edit_file, "-o", new],
        "train": ["experiment.toml", "-o", new],
        "experiment": ["experiment.toml", "-o", new],
        "demo": [smollm2_gguf, "-o", new],
        "data build": ["notes", "-o", new, "--vocab", "300"],
        "data show": ["corpus"],
        "trace list": ["run.h5"],
        "trace merge": ["run.h5", "-o", new],
        "trace plot": ["run.h5", "magnitude", "-o", new],
    }
    groups = [("", cli.app), *((f"{group.name} ", group.typer_instance) for group in cli.app.registered_groups)]
    assert set(commands) == {
        prefix + (command.name or command.callback.__name__)
        for prefix, group in groups
        for command in group.registered_commands
    }
    absent = f"cuda:{max(torch.cuda.device_count(), 1)}"  # a device that another machine may have
    usage = {
        "--dtype": ["float8", "float16", "Float32", "", "a\nb"],
        "--device": [
            "abacus",
            "mps",
            "meta",
            "CUDA",
            "cuda:",
            "cuda:-1",
            "cuda:01",
            "cuda:300",
            "cuda:256",
            "",
            "a\nb",
        ],
        "--threads": ["0", "1000000"],
        "--seed": ["-1"],
    }
    says = {"--dtype": "float32, bfloat16, float64", "--device": "cpu, cuda, cuda:0"}
    before = torch.get_num_threads()
    for name, words in commands.items():
        for option, value in [(option, value) for option, values in usage.items() for value in values]:
            assert cli.main([*name.split(), *map(str, words), option, value]) == 2, (name, option, value)
            said = capsys.readouterr()
            assert said.out == "" and option in said.err and says.get(option, "") in said.err, said.err
            assert option not in says or said.err.count("\n") == 1, said.err
        assert cli.main([*name.split(), *map(str, words), "--device", absent]) == 1, name
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("scalevec: E_DEVICE") and said.err.count("\n") == 1, said.err
    assert not new.exists()
    try:
        assert cli.main(["show", str(edit_file), "--threads", "1"]) == 0 and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_demo_computes_as_asked_and_records_it(tiny_models, tmp_path):
    import h5py
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder, text = tmp_path / "model", tmp_path / "text.txt"
    shutil.copytree(tiny_models["llama"].file, folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(160)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    text.write_text(" ".join(f"w{i}" for i in np.random.default_rng(0).integers(0, 160, 2600)))
    words = ["demo", folder / "model.safetensors", "-o", tmp_path / "out", "--text", text]
    ok(*words, "--dtype", "float64", "--device", "cpu", "--threads", "1", "--seed", "5")
    with h5py.File(tmp_path / "out" / "results.h5") as file:
        recorded = [file.attrs[name] for name in ("dtype", "device", "threads", "seed")]
    assert recorded == ["float64", "cpu", 1, 5]


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
            "--threads",
            "1",
            "--json",
        )
    )
    assert "Paris" in said["before"]
    assert said["after"] != said["before"]
    assert "ablate" in said["edit"] and said["model"]["path"] == str(smollm2_gguf)
    assert (said["dtype"], said["device"], said["seed"], said["threads"]) == ("float32", "cpu", 0, 1)
    assert said["scalevec"] == sv.__version__ and said["torch"] == str(torch.__version__)


def test_version_and_help():
    assert ok("--version").startswith("scalevec 0.")
    assert "inspect" in ok("--help")
