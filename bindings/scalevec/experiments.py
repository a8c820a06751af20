"""Experiments: arms x seeds of training runs, compared seed by seed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from scalevec import _scalevec
from scalevec.errors import Error, make_error
from scalevec.trace_file import open_trace
from scalevec.training import signals_noted

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom (any table of it).
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an experiment file with arms says.

    Attributes:
        name: of the experiment.
        seeds: every arm is trained with each; a seed fixes weights and order of the data, for all arms alike.
        arms: name to fields of a training experiment, dotted.
        baseline: for each arm the arm that it is compared with, or None.
    """

    name: str
    seeds: list[int]
    arms: dict[str, Fields]
    baseline: dict[str, str | None]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Fields:
    found: Fields = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _short(value: object) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _refuse(file: pathlib.Path, message: str) -> Error:
    return make_error("E_SCHEMA", f"experiment: {file}: {message}", file=str(file))


def read_plan(file: pathlib.Path) -> Plan:
    """Reads arms, seeds and grid. Every arm's fields are checked as a training experiment's are.

    An arm is compared with `baseline` (by default the first), or with the arm that its own `against` names.

    Raises:
        ValueError: what the file says, naming the field.
        OSError: the file cannot be read.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise make_error("E_FORMAT", f"experiment: {file}: this is no TOML: {error}", file=str(file)) from None
    unknown = set(table) - {"name", "seeds", "baseline", "base", "arms", "grid"}
    if unknown & {field[0].split(".")[0] for field in _scalevec.experiment_fields()} and "arms" not in table:
        raise _refuse(
            file,
            "this says how one model is trained; run it with `scalevec train`, or make a plan of it: its fields under "
            "[base], what differs under [arms.NAME]",
        )
    if unknown:
        raise _refuse(file, f"unknown {sorted(unknown)[0]!r}; there are name, seeds, baseline, base, arms, grid")
    seeds, arms = table.get("seeds"), table.get("arms")
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int and s >= 0 for s in seeds):
        raise _refuse(file, "seeds is to be a list of whole numbers, 0 or more")
    if len(set(seeds)) != len(seeds):
        raise _refuse(file, "a seed stands twice: pairs would count twice")
    if not isinstance(arms, dict) or not arms or not all(isinstance(arm, dict) for arm in arms.values()):
        raise _refuse(file, "[arms.NAME] tables say what differs")
    for key, kind in (("name", str), ("baseline", str), ("base", dict), ("grid", dict)):
        if not isinstance(table.get(key, kind()), kind):
            raise _refuse(file, f"{key} is to be a {'text' if kind is str else 'table'}")
    first = table.get("baseline", next(iter(arms)))
    if first not in arms:
        raise _refuse(file, f"baseline {first!r} is no arm; arms are {', '.join(arms)}")
    grid = _flat(table.get("grid", {}))
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise _refuse(file, f"grid.{key} is to be a list of values")
    base = _flat(table.get("base", {}))
    for of, fields in (("base", base), ("grid", grid), *((f"arms.{name}", arm) for name, arm in arms.items())):
        for own in {"seed", "name"} & set(fields):
            raise _refuse(file, f"{of}.{own} would be lost: a plan gives every run its seed (seeds = [...]) and name")
    plan = Plan(table.get("name", file.stem), seeds, {}, {})
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for point in points:
        tail = "".join(f", {key.split('.')[-1]} {_short(value)}" for key, value in point.items())
        for name, table in arms.items():
            fields = _flat(table)
            against = fields.pop("against", first)
            if not isinstance(against, str) or against not in arms:
                raise _refuse(file, f"arm {name!r} is against {against!r}, which is no arm; arms are {', '.join(arms)}")
            if name + tail in plan.arms:
                raise _refuse(file, f"two arms are called {name + tail!r}: values of a grid that read alike")
            plan.arms[name + tail] = base | point | fields
            plan.baseline[name + tail] = None if name == against else against + tail
    folders: dict[str, str] = {}
    for name, fields in plan.arms.items():
        experiment_of(fields, plan.seeds[0], f"{file}, arm {name}")
        if _safe(name) in ("", ".", "..", "results.h5", "comparison.png"):
            raise _refuse(file, f"an arm cannot be called {name!r}: the output folder has that name for something else")
        other = folders.setdefault(_safe(name), name)
        if other != name:
            raise _refuse(file, f"arms {other!r} and {name!r} would share the folder {_safe(name)!r}; rename one")
    return plan


def experiment_of(fields: Fields, seed: int, name: str = "experiment") -> _scalevec.Experiment:
    """The training experiment of one arm and seed."""
    return _scalevec.Experiment.parse(_toml(fields | {"seed": seed}), name)


def _toml(fields: Fields) -> str:
    # JSON's texts, numbers and truths are TOML's; group names may hold dots, so they are quoted.
    lines = []
    for key, value in fields.items():
        for table in ("optimizer.decay.", "optimizer.rates."):
            if key.startswith(table):
                key = table + json.dumps(key[len(table) :])
        lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One arm against its baseline, seed by seed.

    Attributes:
        loss, loss_low, loss_high: mean validation loss at the end, nats per prediction, with its 95 % interval.
        deviation: its standard deviation over seeds.
        losses: by seed.
        difference, low, high: mean of the paired differences with its 95 % interval (Student's t), None without a
            baseline; low and high are None below two pairs.
        resolved: the interval leaves 0 out.
    """

    arm: str
    baseline: str | None
    seeds: int
    loss: float
    deviation: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    resolved: bool = False
    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    loss_low: float | None = None
    loss_high: float | None = None


def paired(arm: Sequence[float], baseline: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean difference of pairs with its 95 % interval."""
    return mean_of(np.asarray(arm, dtype=float) - np.asarray(baseline, dtype=float))


def mean_of(values: Sequence[float] | np.ndarray) -> tuple[float, float | None, float | None]:
    """A mean with its 95 % interval, none below two values."""
    d = np.asarray(values, dtype=float)
    if len(d) < 2:
        return float(d.mean()), None, None
    freedom = len(d) - 1
    t = T_975[freedom - 1] if freedom <= len(T_975) else 1.96 + 2.5 / freedom
    half = t * float(d.std(ddof=1)) / math.sqrt(len(d))
    return float(d.mean()), float(d.mean()) - half, float(d.mean()) + half


def compare(plan: Plan, losses: Mapping[tuple[str, int], float]) -> list[Comparison]:
    """Every arm that has a finished run, over the seeds that it shares with its baseline."""
    rows = []
    for arm, baseline in plan.baseline.items():
        by_seed = {seed: losses[arm, seed] for seed in plan.seeds if (arm, seed) in losses}
        if not by_seed:
            continue
        own = list(by_seed.values())
        spread = float(np.std(own, ddof=1)) if len(own) > 1 else None
        middle, low, high = mean_of(own)
        row = Comparison(arm, baseline, len(own), middle, spread, losses=by_seed, loss_low=low, loss_high=high)
        shared = [s for s in plan.seeds if (arm, s) in losses and (baseline, s) in losses]
        if baseline is not None and shared:
            middle, low, high = paired([losses[arm, s] for s in shared], [losses[baseline, s] for s in shared])
            resolved = low is not None and high is not None and (low > 0 or high < 0)
            row = dataclasses.replace(row, difference=middle, low=low, high=high, resolved=resolved)
        rows.append(row)
    return rows


def _safe(arm: str) -> str:
    return "".join(c if c.isalnum() or c in "+-_.[]" else "_" for c in arm)


def _folder_of(output: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    return output / _safe(arm) / f"seed-{seed}"


def _check_same(folder: pathlib.Path, fields: Fields, seed: int) -> None:
    """Refuses a finished run of another experiment than the plan's, or of another corpus, wherever it lies."""
    planned, done = experiment_of(fields, seed), _scalevec.Experiment.read(folder / "experiment.toml")
    planned.name = done.name
    differs = done.first_difference(planned)
    if differs is None and (corpus := fields.get("data.corpus")):
        digests = _scalevec.TraceReader(folder / "log.h5").more.get("corpus", ""), _scalevec.Corpus.open(corpus).digest
        differs = ["data.corpus", *digests] if digests[0] != digests[1] else None
    if differs:
        key, found, expected = differs
        raise make_error(
            "E_CONFIG",
            f"experiment: {folder} was trained with {key} = {found}, and the plan says {expected}; give another output "
            "folder, or remove that run",
            file=str(folder), key=key, expected=expected, found=found,
        )  # fmt: skip


def final_loss(folder: pathlib.Path) -> float:
    """The validation loss of the last step of a finished run."""
    loss = float(open_trace(folder / "log.h5")["validation_loss"][-1])
    if not np.isfinite(loss):
        raise make_error(
            "E_STATE", f"experiment: {folder} has no validation loss of its last step; remove the run, to train it again",
            file=str(folder / "log.h5"),
        )  # fmt: skip
    return loss


def run(
    plan: Plan,
    output: str | os.PathLike[str],
    *,
    jobs: int = 1,
    threads: int = 1,
    device: str = "cpu",
    corpus_beside: pathlib.Path | None = None,
    on_progress: Callable[[str, int, int], object] | None = None,
) -> dict[tuple[str, int], float]:
    """Trains what is not trained yet, `jobs` runs at a time, and returns the final validation losses.

    A run that was interrupted goes on from its last checkpoint; finished ones are left alone, and refused where they are
    not the plan's. Ctrl-C and SIGTERM stop every run at a step, with a checkpoint, and raise KeyboardInterrupt with the signal.

    Args:
        corpus_beside: the folder that relative corpora are relative to; the working directory unless given.

    Raises:
        ValueError: E_CONFIG, a run in the output folder is of other fields or another corpus.
        OSError: E_PATH, an arm's corpus is not there.
        RuntimeError: a run failed; its message says why.
    """
    output = pathlib.Path(output)
    waiting: list[tuple[str, int]] = [(arm, seed) for seed in plan.seeds for arm in plan.arms]
    total = len(waiting)
    losses: dict[tuple[str, int], float] = {}
    working: dict[subprocess.Popen[str], tuple[str, int]] = {}

    def fields_of(arm: str) -> Fields:
        fields = dict(plan.arms[arm])
        if fields.get("data.corpus"):
            fields["data.corpus"] = str(((corpus_beside or pathlib.Path()) / fields["data.corpus"]).resolve())
        return fields

    # Before hours of others.
    for corpus, arm in {fields_of(arm).get("data.corpus"): arm for arm in reversed(plan.arms)}.items():
        try:
            if corpus:
                _scalevec.Corpus.open(corpus)
        except Error as error:
            why = str(error).removeprefix(f"{error.code}: ")
            raise make_error(error.code, f"experiment: arm {arm}: {why}", **error.fields) from None
    for arm, seed in waiting:
        if (_folder_of(output, arm, seed) / "model").exists():
            _check_same(_folder_of(output, arm, seed), fields_of(arm), seed)
    output.mkdir(parents=True, exist_ok=True)

    def start(arm: str, seed: int) -> None:
        folder = _folder_of(output, arm, seed)
        fields = fields_of(arm)
        file = folder.with_suffix(".toml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_toml(fields | {"seed": seed, "name": f"{plan.name}: {arm}"}), encoding="utf-8")
        resume = any((folder / "checkpoints").glob("step-*"))
        if folder.exists() and not resume:  # killed before its first checkpoint
            folder.rename(folder.with_name(f"{folder.name}.abandoned-{time.time_ns()}"))
        words = [sys.executable, "-m", "scalevec", "train", str(file), "-o", str(folder), "--quiet"]
        words += ["--threads", str(threads), "--device", device, *(["--resume"] if resume else [])]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        working[process] = (arm, seed)

    def finish(process: subprocess.Popen[str]) -> None:
        arm, seed = working.pop(process)
        said = process.stderr.read() if process.stderr else ""
        if process.returncode != 0:
            raise RuntimeError(f"arm {arm}, seed {seed} ended with status {process.returncode}: {said.strip()}")
        losses[arm, seed] = final_loss(_folder_of(output, arm, seed))

    received: list[signal.Signals] = []
    with signals_noted(received):
        try:
            while waiting or working:
                ended = [process for process in working if process.poll() is not None]
                if received:  # by every run too, so that status is no failure
                    raise KeyboardInterrupt(received[0])
                for process in ended:
                    finish(process)
                while waiting and len(working) < jobs:
                    arm, seed = waiting.pop(0)
                    folder = _folder_of(output, arm, seed)
                    unmerged = any(folder.glob("*.h5.live"))
                    if (folder / "model").exists() and not unmerged:
                        losses[arm, seed] = final_loss(folder)
                    else:
                        start(arm, seed)
                if on_progress:
                    on_progress("; ".join(f"{arm}, seed {seed}" for arm, seed in working.values()), len(losses), total)
                time.sleep(0.2)
        finally:
            for process in working:
                process.terminate()  # a shell's background job, and so its children, may not hear SIGINT
            for process in working:
                process.wait()
    return losses


def record(
    plan: Plan, losses: Mapping[tuple[str, int], float], path: pathlib.Path, device: str = "cpu"
) -> pathlib.Path:
    """Writes a results file with /runs (a row per arm and seed) and /comparison (a row per arm, its fields as JSON).

    A file that stands there is replaced: the runs are what is kept.
    """
    unit = "nats / prediction"
    file = _scalevec.ResultsFile(
        path, command=os.fsencode(" ".join(sys.argv)), torch=torch.__version__, device=device,
        seed=plan.seeds[0], more={"experiment": plan.name}, overwrite=True,
    )  # fmt: skip
    file.table(
        "runs", "run",
        [
            ("arm", [arm for arm, _ in losses], ""),
            ("seed", [seed for _, seed in losses], ""),
            ("validation_loss", list(losses.values()), unit),
        ],
    )  # fmt: skip
    rows = compare(plan, losses)

    def figures(name: str) -> tuple[str, list[float], str]:
        values = [getattr(row, name) for row in rows]
        return name, [math.nan if v is None else float(v) for v in values], unit

    file.table(
        "comparison", "row",
        [
            ("arm", [row.arm for row in rows], ""),
            ("baseline", [row.baseline or "" for row in rows], ""),
            ("fields", [json.dumps(plan.arms[row.arm]) for row in rows], ""),
            ("seeds", [row.seeds for row in rows], ""),
            *map(figures, ("loss", "loss_low", "loss_high", "deviation", "difference", "low", "high")),
            ("resolved", [int(row.resolved) for row in rows], ""),
        ],
    )  # fmt: skip
    file.finish()
    return path
