"""Ctrl-C in the middle of a long command: it ends soon, with status 130 and one line, and leaves nothing half-written."""

from __future__ import annotations

import os
import pathlib
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import scalevec as sv

LONG = 120  # seconds for a slow machine to come to the work; a fault of the command, not of the machine, takes longer
SOON = 60  # seconds from the signal to the end; about 0.2 where nothing else runs
LINE = "interrupted; nothing was left half-written"


@contextmanager
def started(*words: object, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process of its own, which does not outlive the block."""
    process = subprocess.Popen([sys.executable, "-m", "scalevec", *map(str, words)], **streams)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def wait_for(process: subprocess.Popen[bytes], come: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not come():
        assert process.poll() is None, f"ended with status {process.returncode} before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def read_until(process: subprocess.Popen[bytes], stream: int, text: bytes) -> None:
    """Reads what the command says until the text comes."""
    said, deadline = b"", time.monotonic() + LONG
    while text not in said:
        assert time.monotonic() < deadline, said
        if select.select([stream], [], [], 1.0)[0]:
            try:
                part = os.read(stream, 1 << 16)
            except OSError:  # how Linux says that nobody writes to a terminal any more
                part = b""
            assert part, f"status {process.wait()}, and it never said {text!r}: {said!r}"
            said += part


def interrupted(process: subprocess.Popen[bytes]) -> None:
    """Sends the signal; the process is to end soon, and as one that was interrupted."""
    process.send_signal(signal.SIGINT)
    process.wait(timeout=SOON)
    assert process.returncode == 130


def temporary(folder: pathlib.Path) -> pathlib.Path | None:
    """What an export writes to before it gets its name."""
    return next(folder.glob(".*.scalevec-tmp"), None)


def test_export_of_a_folder(tiny_models, tmp_path):
    """A folder of very many files takes long to copy on any disk."""
    model, edit, out = tmp_path / "model", tmp_path / "e.sv.json", tmp_path / "out"
    shutil.copytree(tiny_models["llama"].shards, model)
    notes, files = model / "a" / "notes", 20_000
    notes.mkdir(parents=True)
    for i in range(files):
        (notes / f"{i}.txt").write_bytes(b"x")
    out.mkdir()
    with sv.load(model).edit() as block:
        block.rescale("final_norm@3", 2)
        block.save(edit)

    with started("export", model, "--edit", edit, "-o", out / "copy", stderr=subprocess.PIPE) as process:
        copied = pathlib.Path("a/notes/0.txt")  # the first by name
        wait_for(process, lambda: (made := temporary(out)) is not None and (made / copied).exists())
        interrupted(process)
        assert process.stderr and process.stderr.read().decode() == f"{LINE}\n"
    assert list(out.iterdir()) == []


def test_export_of_a_file(tiny_models, tmp_path):
    """The signal comes while the copy grows beside its name: as the first piece of it is reported."""
    model, edit, out = tiny_models["llama"].file / "model.safetensors", tmp_path / "e.sv.json", tmp_path / "out"
    out.mkdir()
    with sv.load(model).edit() as block:
        block.rescale("final_norm@3", 2)
        block.save(edit)
    words = ["export", str(model), "--edit", str(edit), "-o", str(out / "copy.safetensors")]
    program = f"""if True:
        import contextlib, os, signal, sys
        from scalevec import cli, render

        @contextlib.contextmanager
        def progress(enabled):
            def callback(what, done, total, note=""):
                print(what, os.listdir({str(out)!r}), flush=True)
                os.kill(os.getpid(), signal.SIGINT)
            yield callback

        render.progress = progress
        sys.exit(cli.main({words!r}))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 130 and done.stderr == f"{LINE}\n"
    assert done.stdout.startswith("copying") and ".scalevec-tmp" in done.stdout and done.stdout.count("\n") == 1
    assert list(out.iterdir()) == []


def test_screening(smollm2_gguf, tmp_path):
    """The demo tries many entries, each alone: with one thread, for many seconds after it says so."""
    out = tmp_path / "out"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started("demo", smollm2_gguf, "-o", out, "--threads", 1, **pipes) as process:
        assert process.stdout and process.stderr
        read_until(process, process.stdout.fileno(), b"[3/8]")
        time.sleep(0.5)
        interrupted(process)
        assert process.stderr.read().decode() == f"{LINE}\n"
        assert b"[4/8]" not in process.stdout.read()
    assert list(out.iterdir()) == []


def test_measuring(tiny_models, tmp_path):
    """Of millions of ids, on a terminal: the bar of the forward passes says that they have begun."""
    folder, edit, ids, out = (tmp_path / name for name in ("model", "e.sv.json", "ids.npy", "out"))
    shutil.copytree(tiny_models["llama"].file, folder)
    with sv.load(folder).edit() as block:
        block.rescale("final_norm@3", 2)
        block.save(edit)
    np.save(ids, np.random.default_rng(0).integers(0, 160, 4_000_000, dtype=np.uint16))
    out.mkdir()
    ours, theirs = pty.openpty()
    try:
        with started(
            "measure", folder, "--edit", edit, "--ids", ids, "--context", 64, "-o", out / "out.h5",
            stdin=theirs, stdout=theirs, stderr=theirs,
        ) as process:  # fmt: skip
            os.close(theirs)
            read_until(process, ours, b"forward")
            interrupted(process)
            read_until(process, ours, f"{LINE}\r\n".encode())
    finally:
        os.close(ours)
    assert list(out.iterdir()) == []


def test_training_keeps_a_checkpoint(tmp_path):
    """What is interrupted here goes on later: nothing half-written among what stays."""
    plan, run = tmp_path / "plan.toml", tmp_path / "run"
    plan.write_text(
        'model = { preset = "nano", width = 16, layers = 1, head_dim = 8 }\n'
        "data = { vocabulary = 11, context = 8, batch = 4 }\n"
        "train = { steps = 1000000, validate_every = 0 }\n"
    )
    with started("train", plan, "-o", run, "--quiet", stderr=subprocess.PIPE) as process:
        wait_for(process, lambda: (run / "experiment.toml").exists())
        interrupted(process)
        assert process.stderr and "--resume" in process.stderr.read().decode()
    assert len(list((run / "checkpoints").glob("step-*"))) == 1 and not (run / "model").exists()
    assert not list(run.rglob("*.scalevec-tmp"))
