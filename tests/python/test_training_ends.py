"""Trainings that a signal or a kill ends before they are done."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import scalevec
from scalevec import _scalevec as core
from tiny_training import assert_same_rows, experiment, in_full


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_trace_is_merged_leaves_it_whole(tmp_path: pathlib.Path, kind: signal.Signals) -> None:
    told: list[tuple[str, int, int]] = []

    def late(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        signal.raise_signal(kind)
        time.sleep(0.1)  # after which merging asks again

    run, steps = tmp_path / "run", list(range(1, 7))
    ended = scalevec.train(experiment(every=1), run, progress=late)
    assert ended.finished and ended.steps == 6 and "not merged: scalevec trace merge" in ended.log_error
    assert np.isfinite(ended.validation_loss)
    ((what, done, total),) = told
    assert what == "merging the trace" and done < total
    assert (run / "model/config.json").exists() and not (run / "trace.h5").exists()
    left = scalevec.open_trace(run / "trace.h5")
    assert not left.finished and left.steps.tolist() == steps

    resumed = scalevec.train(experiment(every=1), run, resume=True)
    assert resumed.finished and resumed.log_error == ""
    merged = scalevec.open_trace(run / "trace.h5")
    assert merged.finished and merged.steps.tolist() == steps
    assert merged["effective"].tobytes() == left["effective"].tobytes()


@pytest.mark.parametrize("row", [1, 3])
def test_a_signal_while_curvature_is_measured_ends_before_the_step(tmp_path: pathlib.Path, row: int) -> None:
    text = experiment(every=3, steps=4, strategy="standard").toml().replace("curvature = 0", "curvature = 3")
    told: list[tuple[int, int]] = []

    def train(run: pathlib.Path, stop: bool) -> scalevec.Run:
        told.clear()
        steps: list[int] = []

        def progress(what: str, done: int, total: int) -> None:
            if what != "measuring curvature":
                return
            told.append((done, total))
            if stop and len(steps) == row - 1:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(0.1)  # after which it asks again

        return scalevec.train(
            core.Experiment.parse(text), run, resume=run.exists(), progress=progress,
            on_step=lambda event: steps.append(event["step"]),
        )  # fmt: skip

    cut, whole = tmp_path / "cut", tmp_path / "whole"
    ended = train(cut, stop=True)
    assert not ended.finished and ended.steps == row - 1 and ended.stopped_by == signal.SIGTERM
    assert told[-1][0] < told[-1][1]
    assert train(cut, stop=False).finished and train(whole, stop=False).finished
    assert_same_rows(cut / "trace.h5", whole / "trace.h5")
    one, other = (r / "model/model.safetensors" for r in (cut, whole))
    assert one.read_bytes() == other.read_bytes()


# Forks of one program, which has no threads yet, are what costs least.
CHILDREN = """
    import faulthandler, os, pathlib, random, shutil, signal, sys, time
    import torch
    faulthandler.enable()  # of a child that crashes, where
    torch.set_num_threads(1)
    sys.path.insert(0, {tests!r})
    import scalevec as sv
    from tiny_training import assert_same_rows, experiment

    folder, count = pathlib.Path({folder!r}), {count}
    chance = random.Random(7)

    def fork(experiment, run, on_step=None, resume=False):
        child = os.fork()
        if child == 0:
            status = 70
            try:
                signal.alarm(120)
                ended = sv.train(experiment, run, resume=resume, on_step=on_step)
                status = 0 if ended.finished and not ended.log_error else int(ended.stopped_by or 71)
            finally:
                os._exit(status)
        return child

    def status_of(child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def children(code: str, folder: pathlib.Path, count: int, **more: object) -> list[str]:
    head = textwrap.dedent(CHILDREN).format(tests=str(pathlib.Path(__file__).parent), folder=str(folder), count=count)
    tail = textwrap.dedent(code).format(**more)
    done = subprocess.run([sys.executable, "-c", head + tail], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: pathlib.Path, record_property) -> None:
    """Killed during a random step, or at any point of the step, the flush and the checkpoint after it."""
    steps, kills = in_full((200, 20), (40, 4))
    record_property("kills", kills)
    said = children(
        """
        whole = experiment(steps={steps}, every=3, train="checkpoint_every = 7\\n")
        assert status_of(fork(whole, folder / "whole")) == 0
        run = folder / "cut"
        for step in [*sorted(chance.sample(range(1, {steps} - 12), count)), None]:
            wait = chance.uniform(1e-6, 0.02)

            def on_step(event, step=step, wait=wait):
                if event["step"] == step:
                    signal.setitimer(signal.ITIMER_REAL, wait)  # nobody handles its signal: it kills

            resume = any(run.glob("checkpoints/step-*"))
            if not resume:
                shutil.rmtree(run, ignore_errors=True)
            status = status_of(fork(whole, run, on_step, resume))
            print(step, status)
            assert status in (0, -signal.SIGALRM)
            if status == 0:
                break
        """,
        tmp_path, kills, steps=steps,
    )  # fmt: skip
    assert [line.split()[1] for line in said] == [str(-signal.SIGALRM)] * kills + ["0"]
    last = f"checkpoints/step-{steps:010}"
    for part in ("model", last):
        files = [file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole" / part).iterdir()]
        assert files
        for file in files:
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file
    for file in ("log.h5", "trace.h5"):
        assert_same_rows(tmp_path / "whole" / file, tmp_path / "cut" / file)


def test_a_signal_at_any_moment_ends_a_run_sealed_within_two_seconds(tmp_path: pathlib.Path, record_property) -> None:
    count = in_full(200, 6)
    record_property("signals", count)
    said = children(
        """
        slowest = 0.0
        for i in range(count):
            run, kind = folder / str(i), (signal.SIGTERM, signal.SIGINT)[i % 2]
            train = "checkpoint_every = 11\\n" if i % 3 else ""
            child = fork(experiment(steps=10**6, every=1, train=train), run)
            while not (run / "experiment.toml").exists():  # from then on signals are noted
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.3))
            start = time.monotonic()
            os.kill(child, kind)
            status = status_of(child)
            slowest = max(slowest, time.monotonic() - start)
            assert status == kind, (i, status)
        print(slowest)
        """,
        tmp_path, count,
    )  # fmt: skip
    record_property("slowest", float(said[-1]))
    assert float(said[-1]) < 2.0
    for i in range(count):
        run = tmp_path / str(i)
        assert not list(run.glob("*.live")) and not list(run.glob(".*"))
        last = max(int(step.name.removeprefix("step-")) for step in run.glob("checkpoints/*"))
        for file in ("log.h5", "trace.h5"):
            trace = scalevec.open_trace(run / file)
            assert trace.finished and trace.steps.tolist() == list(range(1, last + 1)) and not trace.gaps


def test_a_signal_still_reaches_the_handler_of_the_program(tmp_path: pathlib.Path) -> None:
    seen = []
    before = {
        kind: signal.signal(kind, lambda number, _: seen.append(number)) for kind in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        mine = signal.getsignal(signal.SIGTERM)
        run = scalevec.train(experiment(), tmp_path / "run", on_step=lambda event: os.kill(os.getpid(), signal.SIGTERM))
        assert run.stopped_by == signal.SIGTERM and run.steps == 1 and seen == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def test_no_handler_is_installed_where_none_is_wanted(tmp_path: pathlib.Path) -> None:
    kinds = (signal.SIGINT, signal.SIGTERM)
    during = []
    for wanted in (False, True):
        scalevec.train(
            experiment(steps=1), tmp_path / str(wanted), signals=wanted,
            on_step=lambda event: during.append([signal.getsignal(kind) for kind in kinds]) is not None,
        )  # fmt: skip
    of_the_program = [signal.getsignal(kind) for kind in kinds]
    assert during[0] == of_the_program and all(a is not b for a, b in zip(during[1], of_the_program, strict=True))
