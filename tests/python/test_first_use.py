"""What a new user does by mistake: each is told in one line, or cannot be done."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scalevec as sv
import tokenizers
from scalevec import cli, render


@pytest.fixture
def llama(tiny_models, tmp_path) -> pathlib.Path:
    """A tiny model with a tokenizer of two words, as a folder."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["llama"].file, folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    return folder


def said(*arguments, status: int) -> tuple[str, str]:
    """What a command of this status writes on its two outputs."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main([str(a) for a in arguments]) == status
    return out.getvalue(), err.getvalue()


def refusal(*arguments, status: int = 1) -> str:
    out, err = said(*arguments, status=status)
    assert out == "" and (status == 2 or err.count("\n") == 1), err
    return err


def test_effective_values_are_no_place_to_write_an_edit(llama):
    model = sv.load(llama)
    g = model.scales["final_norm"]
    for values in (g.effective, g.base):
        with pytest.raises(ValueError, match="read-only"):
            values[17] = 0
    with model.override("final_norm", g.effective):  # without torch's warning of arrays that are not writable
        model.logits([1, 2])


def test_a_name_of_another_container_leads_to_the_vector(smollm2_gguf, tiny_models):
    """Which Hugging Face name is which vector: Gemma has another norm of the name that Llama uses before the MLP."""
    name = "model.layers.3.post_attention_layernorm"
    message = refusal("inspect", smollm2_gguf, f"{name}.weight")
    assert "the name of layers.3.mlp.input_norm; nearest: layers.3.mlp.input_norm" in message
    with pytest.raises(sv.AddressError, match=r"the name of layers\.3\.mlp\.input_norm$"):
        sv.load(smollm2_gguf).scales[name]
    for address, blk in [
        ("attn.output_norm", "post_attention_norm"), ("mlp.input_norm", "ffn_norm"), ("mlp.output_norm", "post_ffw_norm"),
    ]:  # fmt: skip
        with pytest.raises(sv.AddressError, match=rf"the name of layers\.2\.{address}"):
            sv.load(tiny_models["gemma3"].file).scales.select(f"blk.2.{blk}.weight")
    with pytest.raises(sv.AddressError) as unknown:
        sv.load(smollm2_gguf).scales.select("model.layers.3.pre_feedforward_layernorm")  # Gemma's alone
    assert "another container" not in str(unknown.value)


def test_figures_and_reports_print_as_what_they_are(llama, tmp_path):
    model = sv.load(llama)
    ids = np.random.default_rng(0).integers(0, 160, 1400)
    with model.edit() as edit:
        edit.rescale("final_norm@3", 2)
        short, long = sv.measure(model, ids[:50]), sv.measure(model, ids, context=100)
        exported = model.export(tmp_path / "copy")
    figure = long.loss_change
    assert repr(figure) == f"{figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}]"
    assert repr(short.kl) == f"{short.kl.value:.4g} (no interval)"
    assert repr(short.control) == "NoOpControl(largest difference of any logit 0, over 49 predictions)"
    assert repr(short.touched) == "[TouchedVector('final_norm')]"
    files = [f for f in (tmp_path / "copy").rglob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in files)
    assert repr(exported).startswith(f"ExportReport({len(files)} files, {size} bytes, of which ")
    made = edit.to_edit()
    assert repr(made.operations) == "[Operation(rescale on final_norm@3, 1 of 1 channels changed)]"
    assert repr(made.vectors) == "[EditedVector('final_norm', 1 channels)]"
    (change,) = model.sweep(ids[:50], [("final_norm", 3, 0.0)])
    assert f"loss {change.loss_change!r} nats / token" in repr(change) and "49 predictions" in repr(change)


def test_a_text_is_a_string_or_the_file_that_a_path_names(llama, tmp_path):
    model, notes = sv.load(llama), tmp_path / "notes.txt"
    words = "a b b a a b " * 20
    notes.write_text(words)
    with pytest.raises(sv.InvalidError, match=r"pathlib\.Path\("):
        sv.measure(model, str(notes), allow_unedited=True)
    losses = [sv.measure(model, text, allow_unedited=True).loss_base.value for text in (words, notes, [notes], [words])]
    assert len(set(losses)) == 1
    both = sv.measure(model, [notes, words], allow_unedited=True)
    assert both.ids_read == 2 * len(model.tokenizer.encode(words))
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin-1"))
    for text, says in [
        (tmp_path / "latin1.txt", "is not UTF-8"), (tmp_path / "none.txt", "No such file"),
        (b"a b", "bytes is no text"), (5, "int is no text"), (None, "NoneType is no text"), ({"a": 1}, "mapping"),
    ]:  # fmt: skip
        with pytest.raises(sv.Error, match=says) as refused:
            sv.measure(model, text, allow_unedited=True)
        assert "\n" not in str(refused.value)


def test_an_export_has_an_edit_and_a_name_of_its_container(llama, tmp_path):
    model = sv.load(llama / "model.safetensors")
    with pytest.raises(sv.InvalidError, match="E_NO_EFFECT"):
        model.export(tmp_path / "copy.safetensors")
    model.export(tmp_path / "same.safetensors", allow_unedited=True)
    assert (tmp_path / "same.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
    with model.edit() as edit:
        edit.rescale("final_norm@3", 2)
        for source, name in [(model, "x.gguf"), (llama, "y.gguf"), (llama, "y.safetensors")]:
            with pytest.raises(sv.FileError, match="would be misread"):
                sv.export(source, edit, tmp_path / name)
        change = sv.measure(model, [1, 2, 3, 4])
        for name in ("chg.csv", "chg", "chg.H5.txt"):
            with pytest.raises(sv.FileError, match=r"\.h5"):
                change.save(tmp_path / name)
        for value in ("x", None, [1.0, "x"]):
            with pytest.raises(sv.InvalidError, match="neither a number"):
                edit.set("final_norm@3", value)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model", "same.safetensors"]


def test_a_mistake_names_what_it_met_and_the_way_out(llama, tmp_path, monkeypatch):
    notes, edit, new = tmp_path / "notes.txt", tmp_path / "e.sv.json", tmp_path / "new"
    notes.write_text("some notes about things")
    said("edit", llama, "final_norm@3", "rescale", "2", "-o", edit, status=0)
    missing = tmp_path / "missing"
    measured = ["measure", llama, "--edit", edit]
    bare = tmp_path / "bare"
    shutil.copytree(llama, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    for words, says in [
        ([*measured, "--text", missing], f"text: {missing} cannot be read"),
        (["export", llama, "--edit", missing, "-o", new], f"no edit file {missing}"),
        (["show", notes], "this is no edit file but text"),
        (["inspect", notes], "this is text, no model"),
        (["edit", llama, "final_norm", "rescale", "1.0", "-o", new], "--allow-no-effect"),
        (["edit", llama, "final_norm", "rescale", "nan", "-o", new], "the command line does not offer"),
        (["edit", llama, "final_norm@3", "rescale", "2", "-o", edit], "--append"),
        (["edit", llama, "final_norm@3", "rescale", "2", "-o", new, "--append"], "does not exist"),
        ([*measured, "--text", notes, "-o", notes], "must end in .h5"),
        (["inspect", "~/model.gguf"], "$HOME/model.gguf"),
        (["generate", bare, "--prompt", "a"], "holds no tokenizer.json"),
    ]:
        assert says in refusal(*words), words
    assert "pass token ids" not in refusal("generate", bare, "--prompt", "a")
    for words, says in [
        ([*measured, "--edit", edit, "--text", notes], "--append"),
        (["edit", llama, "final_norm@3", "rescale", "2", "final_norm@4", "ablate", "-o", new], "--append"),
    ]:
        assert says in refusal(*words, status=2)
    (tmp_path / "there.h5").touch()
    assert "exists" in refusal(*measured, "--text", notes, "-o", tmp_path / "there.h5")
    assert not new.exists()


def test_notes_say_where_a_text_or_a_reply_ended(llama, tmp_path):
    edit, notes = tmp_path / "e.sv.json", tmp_path / "notes.txt"
    notes.write_text("a b b a " * 10)
    said("edit", llama, "final_norm@3", "rescale", "2", "-o", edit, status=0)
    words = ["measure", llama, "--edit", edit, "--text", notes, "--json"]
    out, err = said(*words, "--tokens", "4000", status=0)
    ids = sv.load(llama).tokenizer.encode(notes.read_text())
    found = json.loads(out)
    assert found["ids_read"] == len(ids) and "4,000" in err and err.count("\n") == 1
    assert found["ids_sha256"] == hashlib.sha256(np.array(ids, "<i8").tobytes()).hexdigest()
    out, err = said(*words, "--tokens", "20", status=0)
    assert json.loads(out)["ids_read"] == 20 and err == ""
    _, err = said("generate", llama, "--prompt", "a b", "--max-tokens", "3", "--json", status=0)
    assert "stopped at 3 tokens" in err and "--max-tokens" in err


def test_one_is_no_plural(llama):
    out, _ = said("inspect", llama, "final_norm", status=0)
    assert "1 scale vector, 32 entries" in out
    model = sv.load(llama)
    text = sv.measure(model, [1, 2, 3, 4], allow_unedited=True).text()
    assert "1 window of 512 ids; 1 chunk; " in text
    assert repr(model.scales[:1]).endswith("1 scale vector, 32 entries")


def test_help_says_each_command_in_a_whole_sentence():
    out, _ = said("--help", status=0)
    commands = out.partition("Commands:")[2]
    assert "inspect" in commands and "..." not in commands


def test_a_reader_that_goes_away_ends_the_command_quietly(llama):
    command = f"{sys.executable} -m scalevec inspect {llama} --channels | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.stderr == "" and done.returncode in (0, 141)
    assert done.stdout.startswith("address")


def test_an_interrupt_while_torch_is_loaded_is_one_line(tmp_path):
    """A torch that is interrupted stands before the real one."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join([str(tmp_path), str(pathlib.Path(sv.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", "import sys, scalevec_command; sys.exit(scalevec_command.main())"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 130 and done.stdout == "" and done.stderr == "interrupted; nothing was written\n"


def test_an_interrupt_after_the_work_is_done_changes_nothing():
    late = """if True:
        import atexit, os, signal, sys, scalevec_command
        atexit.register(os.kill, os.getpid(), signal.SIGINT)
        sys.exit(scalevec_command.main())
    """
    done = subprocess.run([sys.executable, "-c", late, "--version"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("scalevec ") and done.stderr == ""


def test_progress_in_a_pipe_speaks_now_and_then_where_asked(monkeypatch, capsys):
    now = iter([0.0, 5.0, 20.0, 20.0, 21.0, 45.0, 45.0])
    monkeypatch.setattr(render.time, "monotonic", lambda: next(now))
    with render.progress(lines_every=20) as callback:
        for done in range(4):
            callback("forward", done, 4)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == ["forward: 1 of 4", "forward: 3 of 4"]
