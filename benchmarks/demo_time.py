"""The demo on SmolLM2 with two threads, after the build: wall-clock (goal: three minutes)."""

import pathlib
import subprocess
import sys
import tempfile
import time

from .harness import Figure, report

with tempfile.TemporaryDirectory() as name:
    start = time.perf_counter()
    code = f"import sys; from scalevec.cli import main; sys.exit(main(['demo', '-o', {str(pathlib.Path(name) / 'out')!r}, '--threads', '2']))"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
report("demo_time", [Figure("scalevec demo", seconds, "s", "<= 180", seconds <= 180)])
