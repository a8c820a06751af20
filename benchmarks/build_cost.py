"""Goal 16: what a clean build of library and bindings costs on two cores, and the tests after it, without a compiler cache."""

import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("core", "hooks", "analysis", "edits", "trainer")
# Autograd's and ATen's own headers.
NAMED = ("core/differentiable.cpp", "core/ops.cpp")


def launch(log: str, command: list[str]) -> int:
    """Stands before the compiler: runs it, and adds a line with CPU seconds, megabytes and source to the log."""
    import resource

    code = subprocess.call(command)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    source = next((word for word in reversed(command) if word.endswith((".cpp", ".cxx"))), command[-1])
    with open(log, "a") as out:
        print(used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, source, sep="\t", file=out)
    return code


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    from .harness import Figure, report

    with tempfile.TemporaryDirectory() as scratch:
        build, log = f"{scratch}/build", f"{scratch}/log"
        launcher = ";".join([sys.executable, "-S", __file__, log])
        configure = ["cmake", "--preset", "release", "-S", str(ROOT), "-B", build]
        configure += [f"-DPython3_EXECUTABLE={sys.executable}", f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"]
        walls, logs = [], []
        for part in ("OFF", "ON"):
            run([*configure, f"-DSCALEVEC_TESTS={part}", f"-DSCALEVEC_EXAMPLES={part}"])
            start = time.perf_counter()
            run(["ninja", "-C", build, "-j", "2", "--quiet"])
            walls.append(time.perf_counter() - start)
            logs.append([line.split("\t") for line in pathlib.Path(log).read_text().splitlines()])
            pathlib.Path(log).unlink()
    rows, of_tests = logs
    units = {}
    for cpu, megabytes, source in rows:
        path = pathlib.Path(source)
        inside = path.is_relative_to(ROOT)
        made = path.stem if path.parent.name == "Unity" else f"(precompiled) {path.parent.name}"
        units[str(path.relative_to(ROOT)) if inside else made] = float(cpu), int(megabytes)
    library = {name: cost for name, cost in units.items() if name.split("/")[0] in FOLDERS}
    dear = {name for name, (cpu, megabytes) in library.items() if cpu > 6 or megabytes > 600}
    unnamed = sorted(dear - set(NAMED))
    heaviest = max(library, key=lambda name: library[name][0])
    report(
        "build_cost",
        [
            Figure("clean build, two jobs", walls[0], "s", "<= 240 s", walls[0] <= 240),
            Figure("tests and examples after it", walls[1], "s", "<= 240 s", walls[1] <= 240),
            Figure("clean build, CPU", sum(cpu for cpu, _ in units.values()), "CPU-s", note=f"{len(units)} sources"),
            Figure(
                "tests and examples, CPU", sum(float(row[0]) for row in of_tests), "CPU-s",
                note=f"{len(of_tests)} sources",
            ),
            Figure(
                "library sources over 6 CPU-s or 600 MB", len(dear), "sources", "<= 3, named", len(dear) <= 3,
                note=", ".join(sorted(dear)) + (f"; not named: {', '.join(unnamed)}" if unnamed else ""),
            ),
            Figure(f"dearest library source, {heaviest}", library[heaviest][0], "CPU-s"),
            Figure("largest compiler, library", max(m for _, m in library.values()), "MB"),
            *(Figure(name, cpu, "CPU-s") for name, (cpu, _) in sorted(units.items(), key=lambda u: -u[1][0])[:10]),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else main())
