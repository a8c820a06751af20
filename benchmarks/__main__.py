"""Runs the named benchmarks, or all of them but the promises, one process each."""

import pathlib
import subprocess
import sys

here = pathlib.Path(__file__).parent
names = sys.argv[1:] or sorted(
    p.stem for p in here.glob("*.py") if p.stem not in ("__init__", "__main__", "harness", "promises")
)
failed = [
    name for name in names if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
]
sys.exit(f"did not finish: {', '.join(failed)}" if failed else 0)
