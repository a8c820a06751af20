"""The package as `pip install .` makes it: built, installed into a fresh environment, and used from another folder."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from conftest import ROOT

SOURCES = ROOT / "bindings" / "scalevec"
MODULE = "_scalevec" + sysconfig.get_config_var("EXT_SUFFIX")


def run(*command, cwd, refused=False, **environment) -> str:
    """What the command prints. It does not see the build folder's package, which PYTHONPATH may name."""
    seen = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd, env=seen, timeout=900)
    # The end tells what went wrong: the beginning of a build is long.
    assert (done.returncode != 0) == refused, "\n".join((done.stdout + done.stderr).splitlines()[-60:])
    return done.stdout + done.stderr if refused else done.stdout


def fresh_environment(folder: pathlib.Path) -> pathlib.Path:
    """The Python of a new virtual environment, without any package."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Compiled in build/wheel with the flags of build/release, so that a compiler cache need not compile twice."""
    if importlib.util.find_spec("scikit_build_core") is None or shutil.which("c++") is None:
        pytest.skip("building the wheel takes scikit-build-core and a C++ compiler: make build installs both")
    folder = tmp_path_factory.mktemp("wheel")
    settings = ("build-dir=build/wheel", "cmake.define.SCALEVEC_CUDA=OFF")
    offline = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
    options = [*offline, *(f"--config-settings={s}" for s in settings)]
    run(sys.executable, "-m", "pip", "wheel", ROOT, *options, "-w", folder, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """The Python of a fresh environment that holds the wheel, and sees this one's packages but not its scalevec."""
    folder = tmp_path_factory.mktemp("installed")
    python = fresh_environment(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # With --no-index, a dependency that requirements.txt does not satisfy is an error.
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-index", wheel, cwd=folder)
    return python


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {pathlib.PurePath(name): archive.read(name) for name in archive.namelist()}
    package = {name.name: content for name, content in files.items() if name.parts[0] == "scalevec"}
    assert package.pop(MODULE)
    assert package == {f.name: f.read_bytes() for f in SOURCES.iterdir() if f.is_file()}
    version = (ROOT / "VERSION").read_text().strip()
    assert {name.parts[0] for name in files} == {
        "scalevec", "scalevec_command", f"scalevec-{version}.dist-info",
    }  # fmt: skip
    assert (ROOT / "LICENSE").read_bytes() in files.values()


def test_the_installed_command_runs_anywhere(installed, tmp_path):
    version = (ROOT / "VERSION").read_text().strip()
    assert version in run(installed.parent / "scalevec", "--version", cwd=tmp_path)


def test_the_installed_package_opens_a_real_model(installed, smollm2_gguf, tmp_path):
    from gguf import GGUFReader

    program = f"""
import scalevec as sv
print(sv.__file__, sv._scalevec.__file__, *(vector.native for vector in sv.load({str(smollm2_gguf)!r}).scales), sep="\\n")
"""
    package, module, *native = run(installed, "-c", program, cwd=tmp_path).splitlines()
    home = installed.parents[1]
    assert home in pathlib.Path(package).parents and home in pathlib.Path(module).parents
    assert sorted(native) == sorted(t.name for t in GGUFReader(smollm2_gguf).tensors if t.name.endswith("norm.weight"))
    assert len(native) == 61


def test_torch_is_found_from_an_isolated_build(tmp_path):
    """As under plain `pip install .`: the interpreter of the environment, with its site-packages off the path."""
    import torch

    program = """
import runpy, sys
sys.path[:] = [p for p in sys.path if not p.endswith(("site-packages", "dist-packages"))]
runpy.run_path(sys.argv[1])
"""
    found = run(sys.executable, "-c", program, ROOT / "cmake" / "find_torch.py", cwd=tmp_path)
    assert pathlib.Path(found) == pathlib.Path(torch.__file__).parent


def test_without_torch_the_build_says_what_to_do(tmp_path):
    cmake = shutil.which("cmake") or pytest.skip("no cmake")
    python = fresh_environment(tmp_path / "empty")
    said = run(
        *(cmake, "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", f"-DPython3_EXECUTABLE={python}"),
        cwd=tmp_path,
        refused=True,
    )
    assert "pip install torch==2.11.0" in said and "--no-build-isolation" in said
    assert str(python) in said
