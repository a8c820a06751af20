"""Training under watch: runs in a folder, from an experiment file."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import signal
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from scalevec import _scalevec

if TYPE_CHECKING:
    from scalevec.model import Progress

Event = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training as it ended.

    Attributes:
        folder: experiment.toml, log.h5, trace.h5 where one was asked for, checkpoints/, and model/ once finished.
        steps: optimizer steps done.
        validation_loss: the last one, nats per prediction; NaN where none was made.
        finished: False where the run was stopped: `train(..., resume=True)` goes on.
        stopped_by: the signal that stopped it, or None.
        groups: named parameter groups: slots, rule, factor of the learning rate, weight decay.
        gauge_faults: sites one of whose identities failed in a row of the trace: a wiring mistake.
        log_error: what the log or the trace could not keep, or that a signal left the trace unmerged; empty: nothing.
    """

    folder: pathlib.Path
    steps: int
    validation_loss: float
    finished: bool
    stopped_by: signal.Signals | None
    groups: list[dict[str, Any]]
    gauge_faults: list[dict[str, Any]]
    log_error: str

    @property
    def model(self) -> pathlib.Path:
        """A MODEL for `scalevec.load` and every command."""
        return self.folder / "model"


@contextmanager
def signals_noted(received: list[signal.Signals]) -> Iterator[None]:
    """SIGINT and SIGTERM are noted, so that what runs ends where it may; only the main thread may ask for that.

    A handler of the program's own is called as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: types.FrameType | None) -> None:
        received.append(signal.Signals(number))
        if callable(before[number]) and before[number] is not signal.default_int_handler:
            before[number](number, frame)

    for kind in before:
        signal.signal(kind, note)
    try:
        yield
    finally:
        for kind, handler in before.items():
            if handler is not None:  # of no program in Python
                signal.signal(kind, handler)


class _Left(Exception):
    """A signal came into what takes long."""


def train(
    experiment: str | os.PathLike[str] | _scalevec.Experiment,
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[Event], object] | None = None,
    progress: Progress | None = None,
    signals: bool = True,
    command: str = "scalevec.train",
) -> Run:
    """Trains a model as an experiment file says, in the folder `output`.

    Ctrl-C and SIGTERM end the run at a step with a checkpoint. A run that was stopped or killed goes on from its last
    checkpoint to the same bits with ``resume=True`` and as many threads. A row of curvature that a signal comes into is given up with its
    step, and made again. At the end the trace is merged into one file, which for a long one takes a while: a signal leaves
    it as it is, to be merged by ``resume=True`` or `scalevec trace merge`.

    Args:
        experiment: an experiment file (TOML; `scalevec train --fields` lists what it may say), or an Experiment.
        on_step: called after each step with loss, learning rate, validation_loss and more; True stops the run.
        progress: called now and then while curvature is measured or the trace is merged, with (what, done, total). What
            it raises ends the run, after a checkpoint.
        signals: False installs no handlers: SIGINT and SIGTERM do what the program has them do.

    Raises:
        ValueError: E_SCHEMA, E_VALUE for what the file says, E_CONFIG for another experiment's run; a loss or
            gradient that is not finite, naming the tensor.
        OSError: E_PATH where the folder holds something, or nothing to resume.
    """
    if not isinstance(experiment, _scalevec.Experiment):
        experiment = _scalevec.Experiment.read(pathlib.Path(experiment))
    folder = pathlib.Path(output)
    received: list[signal.Signals] = []
    heeded = 0

    def step(event: Event) -> bool:
        nonlocal heeded
        stop = on_step(event) if on_step else False
        heeded = len(received)
        return bool(stop) or bool(received)

    def told(what: str, done: int, total: int) -> None:
        if len(received) > heeded:
            raise _Left
        if progress:
            progress(what, done, total)

    training = _scalevec.Training(experiment, device=device)
    result: dict[str, Any] = {}
    try:
        with signals_noted(received) if signals else nullcontext():
            _scalevec.run_training(
                training, folder, resume=resume, command=command, on_step=step, progress=told, so_far=result
            )
    except _Left:
        if result["finished"] and not result["log_error"]:
            merge = f"scalevec trace merge {shlex.quote(str(folder / 'trace.h5'))}"
            result["log_error"] = f"the trace is whole, but not merged: {merge}"
    return Run(
        folder=folder,
        stopped_by=received[0] if received and not result["finished"] else None,
        groups=training.groups,
        **result,
    )
