"""Appending to a trace (goal G15): against write(2) of the same bytes, and against h5py with one row per call."""

import os
import pathlib
import statistics
import tempfile
import time

import h5py
import numpy as np
import scalevec as sv
from scalevec import _scalevec

from .harness import Figure, interleave, report, smollm2

ROWS = 2000
LARGE, SMALL = 35_136, 61  # floats: every channel of SmolLM2, one per site
folder = pathlib.Path(tempfile.mkdtemp(prefix="trace-append-", dir=pathlib.Path.cwd()))
generator = np.random.default_rng(0)


class Runs:
    def __init__(self, sites: list, per: str, merge: bool) -> None:
        self.sites, self.per, self.merge = sites, per, merge
        self.thread: list[float] = []  # CPU seconds of the training's thread

    def __call__(self, pause: float = 0.0) -> list[float]:
        path = folder / "run.h5"
        writer = _scalevec.TraceWriter(
            path, [_scalevec.TraceColumn("x", per=self.per)], self.sites, ring_bytes=ROWS * (4 * LARGE + 8), deflate=0
        )
        row = generator.standard_normal(writer.row_bytes // 4).astype(np.float32)
        calls = []
        begin = time.thread_time()
        for step in range(ROWS):
            start = time.perf_counter()
            kept = writer.append(step, row)
            calls.append(time.perf_counter() - start)
            assert kept
            if pause:
                time.sleep(pause)
        self.thread.append(time.thread_time() - begin)
        status = writer.close(merge=self.merge)
        assert status.kept == ROWS and not status.error, status.error
        clear()
        return calls


def clear() -> None:
    for entry in sorted(folder.rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() else entry.unlink()


def raw_write(width: int):
    row = generator.standard_normal(width).astype(np.float32)
    spent: list[float] = []

    def run() -> None:
        begin = time.thread_time()
        descriptor = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for _ in range(ROWS):
            os.write(descriptor, row)
        spent.append(time.thread_time() - begin)
        os.close(descriptor)
        clear()

    return run, spent


def h5py_rows(width: int):
    row = generator.standard_normal(width).astype(np.float32)

    def run() -> None:
        with h5py.File(folder / "peer.h5", "w") as file:
            data = file.create_dataset("x", (0, width), maxshape=(None, width), dtype="f4", chunks=(64, width))
            for step in range(ROWS):
                data.resize(step + 1, axis=0)
                data[step] = row
        clear()

    return run


sites = sv.load(smollm2()).checkpoint.sites
assert sum(site.width for site in sites) == LARGE and len(sites) == SMALL
figures = []
for merge in (False, True):
    ours = Runs(sites, "channel", merge)
    peer, spent = raw_write(LARGE)
    pair = interleave(ours, peer, pairs=5)
    end = "and close, merged" if merge else "and close"
    if not merge:
        ratio = statistics.median(a / b for a, b in zip(ours.thread, spent, strict=True))
        figures.append(
            Figure(
                "140 KB rows, training's thread / write(2)", ratio, "x", "<= 1.6", ratio <= 1.6,
                f"{1e6 * statistics.median(ours.thread) / ROWS:.3g} us per row",
            )
        )  # fmt: skip
    figures.append(
        Figure(
            f"140 KB rows, all threads {end} / write(2)", pair.ratio, "x", "" if merge else "<= 1.6",
            None if merge else pair.ratio <= 1.6,
            f"{1e6 * pair.ours / ROWS:.3g} us per row; {pair.low:.2f} to {pair.high:.2f}; write(2) syncs nothing",
        )
    )  # fmt: skip
for merge in (False, True):
    pair = interleave(Runs(sites, "site", merge), h5py_rows(SMALL), pairs=7)
    figures.append(
        Figure(
            f"h5py / ours, rows of 61 floats, close{', merged' if merge else ''}", 1 / pair.ratio, "x",
            ">= 10", 1 / pair.ratio >= 10, f"ours {1e6 * pair.ours / ROWS:.3g} us per row, all threads",
        )
    )  # fmt: skip
calls = sorted(Runs(sites, "channel", False)(pause=0.002))
figures.append(
    Figure(
        "worst of 2,000 calls, 140 KB rows, one each 2 ms", 1e3 * calls[-1], "ms", "<= 1 ms", calls[-1] <= 1e-3,
        f"median {1e6 * calls[ROWS // 2]:.3g} us, 99.9 % below {1e6 * calls[-3]:.3g} us, wall-clock",
    )
)  # fmt: skip
folder.rmdir()
report("trace_append", figures)
