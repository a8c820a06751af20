"""`make train-demo`: two minutes of training with the tracer on, and what the scale vectors did meanwhile.

Trains the preset `nano` with the paper's unified strategy (arXiv 2605.26895) on the sources of Python's own library,
opens the trace with plain h5py, prints effective learning rate, preconditioning and co-adaptation by role, and plots
them.
"""

from __future__ import annotations

import argparse
import pathlib
import sysconfig
import time

import h5py
import numpy as np
import scalevec as sv

SHOWN = {
    "magnitude": "magnitude of g, its root mean square",
    "elr": "effective learning rate of a column",
    "precond_gain": "preconditioning: mean eigenvalue",
    "log_pearson": "co-adaptation: correlation of log|g| and log N",
    "amplification": "amplification R",
}

EXPERIMENT = """
name = "train-demo"
[model]
preset = "nano"
strategy = "unified"
[data]
corpus = "{corpus}"
context = 128
batch = 8
[optimizer]
learning_rate = 0.004
[schedule]
warmup = {warmup}
[train]
steps = {steps}
validate_every = {validate}
validation_windows = 32
[trace]
every = {every}
"""


def experiment(corpus: pathlib.Path, steps: int) -> sv.Experiment:
    return sv.Experiment.parse(
        EXPERIMENT.format(
            corpus=corpus.as_posix(), steps=steps, warmup=max(1, steps // 20), validate=max(1, steps // 5),
            every=max(1, steps // 50),
        )
    )  # fmt: skip


def seconds_per_step(corpus: pathlib.Path) -> float:
    training = sv._scalevec.Training(experiment(corpus, 1000))
    training.advance()
    start = time.monotonic()
    for _ in range(3):
        training.advance()
    return (time.monotonic() - start) / 3


def by_role(file: h5py.File, metric: str) -> dict[str, np.ndarray]:
    """The median over sites, or over their channels, at every step, by role."""
    values = file["trace"][metric][()]
    roles = np.array([r.decode() if isinstance(r, bytes) else r for r in file["sites/role"][()]])
    if values.shape[1] != len(roles):
        roles = np.repeat(roles, file["sites/width"][()])
    found = {}
    for role in dict.fromkeys(roles):
        columns = values[:, roles == role]
        if np.isfinite(columns).any():
            found[role] = np.nanmedian(np.where(np.isfinite(columns), columns, np.nan), axis=1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=pathlib.Path, default=pathlib.Path("train-demo-output"))
    parser.add_argument("--seconds", type=float, default=120.0, help="of training")
    parser.add_argument("--text", type=pathlib.Path, help="a file or folder; Python's own modules by default")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    corpus = (given.output / "corpus").resolve()
    if not corpus.exists():
        modules = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
        print(f"building a corpus of {given.text or f'the {len(modules)} modules of Python itself'}", flush=True)
        sv.data.build([given.text] if given.text else modules, corpus, vocabulary=2048, validation=0.1)
    steps = int(np.clip(given.seconds / seconds_per_step(corpus), 10, 5000))
    folder = given.output / time.strftime("run-%Y%m%d-%H%M%S")
    print(f"training nano, strategy unified, for {steps} steps in {folder}", flush=True)

    def say(event: dict) -> None:
        if not np.isnan(event["validation_loss"]):
            print(
                f"  step {event['step']:>5}: validation loss {event['validation_loss']:.3f} nats, training "
                f"{event['loss']:.3f}, "
                f"{event['tokens_per_second']:,.0f} tokens/s, {event['seconds_left']:.0f} s left",
                flush=True,
            )

    run = sv.train(experiment(corpus, steps), folder, on_step=say)
    if not run.finished or run.log_error:
        print(f"stopped after step {run.steps}; the trace so far is {folder / 'trace.h5'}")
        return
    with h5py.File(folder / "trace.h5") as file:
        at = file["trace/step"][()]
        series = {metric: by_role(file, metric) for metric in SHOWN}
        residuals = file["trace/gauge_residual"][()]
    print(f"\n{'':48}{'role':>8}{'first':>12}{'last':>12}   (median)")
    for metric, roles in series.items():
        for i, (role, values) in enumerate(roles.items()):
            print(f"{SHOWN[metric] if i == 0 else '':48}{role:>8}{values[0]:>12.3g}{values[-1]:>12.3g}")
    if run.gauge_faults:
        print("gauge identities failed:", run.gauge_faults)
    else:
        judged = residuals[np.isfinite(residuals)]
        print(
            f"\nThe gauge identity g dL/dg = sum <W, dL/dW> held in all {judged.size:,} channels of {len(at)} rows for which "
            f"it is known: the largest residual is {judged.max(initial=0.0):.1e} of the sum's terms."
        )
    picture = sv.trace_file.plot(sv.open_trace(folder / "trace.h5"), list(SHOWN), folder / "trace.png")
    print(f"picture {picture}, trace {folder / 'trace.h5'}, model {run.model}")


if __name__ == "__main__":
    main()
