"""The promises of traces and trainings with their whole numbers, which the tests reach in part: 17 minutes of two cores."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

from .harness import RESULTS, Figure, report

ROOT = RESULTS.parents[1]
build = pathlib.Path(os.environ.get("SCALEVEC_BUILD_DIR", ROOT / "build" / "release"))
environment = {**os.environ, "SCALEVEC_FULL": "1", "SCALEVEC_BUILD_DIR": str(build)}

# Of a program's test cases: promise, program, test case (? for a comma, which would part two), figures as (what, pattern
# in what it says, unit, least, most).
CASES = [
    ("P9, P10", "faults_test", "a trace? with every writing call*", [
        ("writing calls that fail, are torn or are the last", r"points: (\d+)", "points", 2000, None),
        ("of them the process's end", r"process's end: (\d+)", "points", 2000, None),
    ]),
    ("P9", "faults_test", "a trace after a power cut*", [("disks after a power cut", r"states: (\d+)", "states", 5000, None)]),
    ("P9", "faults_test", "a writing process killed*", [("kills at random moments", r"kills: (\d+)", "kills", 1000, None)]),
    ("P9", "faults_test", "what a killed writer left*", [
        ("going on, processor time for a GB of journal", r"bytes: ([\d.e+-]+) s of", "s", None, 2.0),
    ]),
    ("P10", "faults_test", "a limit on the length*", [("a limit on the length of files, lifted and not", None, "held", 1, None)]),
    ("P11", "store_test", "eight reading processes*", [
        ("views of eight readers beside 1,000 rows a second", r"views: (\d+)", "views", 8, None),
        ("slowest opening", r"slowest opening: ([\d.e+-]+) s", "s", None, 1.0),
        ("what the training waited in 600,000 rows", r"waited ([\d.e+-]+) s", "s", None, 30.0),
    ]),
    ("P13", "trainer_test", "1?000 gradients*", [("gradients that are not finite, each named", None, "held", 1, None)]),
]  # fmt: skip

# Of Python's tests: promise, file and test, figures as (what, property that the test records, unit, least, most).
TESTS = [
    ("P12", "test_training.py::test_tracing_changes_no_bit", [
        ("steps of each of three rules, the same bits traced and not", "steps", "steps", 200, None),
    ]),
    ("P12", "test_training_ends.py::test_a_killed_run_goes_on_to_the_same_bits", [
        ("kills in 200 steps, the same bits at the end", "kills", "kills", 20, None),
    ]),
    ("P13", "test_tracer_edges.py::test_what_is_not_finite_is_counted_with_site_channel_and_step", [
        ("steps with values that are not finite, counted", "steps", "steps", 1000, None),
    ]),
    ("P18", "test_training_ends.py::test_a_signal_at_any_moment_ends_a_run_sealed_within_two_seconds", [
        ("signals at random moments", "signals", "signals", 200, None),
        ("slowest end after one", "slowest", "s", None, 2.0),
    ]),
]  # fmt: skip


def held(
    promise: str,
    what: str,
    values: list[float],
    unit: str,
    least: float | None,
    most: float | None,
    ran: bool,
    took: str,
) -> Figure:
    value = (max if most is not None else min)(values, default=float("nan"))
    met = ran and (value >= least if least is not None else most is not None and value <= most)
    goal = f">= {least}" if least is not None else f"<= {most}"
    return Figure(f"{promise}: {what}", value, unit, goal, met, took)


def of_cases() -> list[Figure]:
    out = []
    for promise, program, case, wanted in CASES:
        start = time.perf_counter()
        done = subprocess.run(
            [build / "tests" / program, f"--test-case={case}"], capture_output=True, text=True, env=environment
        )
        took = f"{time.perf_counter() - start:.0f} s"
        ran = re.search(r"test cases:\s+1 \|\s+1 passed", done.stdout) is not None
        if not ran:
            print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
        for what, pattern, unit, least, most in wanted:
            values = [float(v) for v in re.findall(pattern, done.stdout)] if pattern else [float(ran)]
            out.append(held(promise, what, values, unit, least, most, ran, took))
    return out


def of_tests() -> list[Figure]:
    out = []
    for promise, test, wanted in TESTS:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "found.xml"
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                f"--junitxml={file}",
                str(ROOT / "tests" / "python" / test),
            ]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
            suite = ElementTree.parse(file).getroot()[0]
        ran = done.returncode == 0 and int(suite.get("tests", "0")) > 0 and suite.get("skipped") == "0"
        if not ran:
            print(done.stdout[-4000:], file=sys.stderr)
        took = f"{float(suite.get('time', 'nan')):.0f} s"
        for what, name, unit, least, most in wanted:
            values = [float(p.get("value", "nan")) for p in suite.iter("property") if p.get("name") == name]
            out.append(held(promise, what, values, unit, least, most, ran, took))
    return out


programs = sorted({program for _, program, *_ in CASES})
subprocess.run(
    ["cmake", "--build", build, "--target", *programs, "scalevec_python"], check=True, stdout=subprocess.DEVNULL
)
report("promises", of_cases() + of_tests())
