"""The seam between C++ and Python: tensors, errors, locks, signals, and the stubs."""

import ast
import gc
import inspect
import json
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest
import scalevec as sv
import torch
from scalevec import _scalevec


@pytest.fixture(scope="module")
def tiny(tiny_models):
    return tiny_models["llama"]


def test_tensors_are_shared_both_ways(tiny):
    model = sv.load(tiny.file)
    g = model.scales[0]
    assert g.stored.data_ptr() == model.transformer.scales[0].stored.data_ptr()
    assert g.stored is g.stored  # one Python object for one tensor, so that .grad and hooks stay
    g.stored.requires_grad_(True)
    model.logits([[1, 2, 3]]).sum().backward()
    assert g.stored.grad is not None and g.stored.grad.shape == (g.width,)
    # It outlives the model that it came from.
    kept, values = g.stored, g.stored.detach().clone()
    del model, g
    gc.collect()
    assert torch.equal(kept.detach(), values)


def test_what_is_no_tensor_is_refused(tiny):
    model = sv.load(tiny.file)
    for wrong in ([1, 2], "ids", 3):
        with pytest.raises(TypeError):
            model.transformer.logits(wrong)
    parameter = torch.nn.Parameter(torch.ones(model.scales[0].width))
    with model.override(model.scales[0], parameter):  # a subclass of Tensor is a tensor
        model.logits([1, 2]).sum().backward()
    assert parameter.grad is not None


def test_errors_carry_code_and_fields(tiny, tmp_path):
    model = sv.load(tiny.file)
    cases = [
        (lambda: model.scales["layers.0.attn.imput_norm"], sv.AddressError, IndexError, "E_ADDR"),
        (lambda: sv.load(tmp_path / "nothing"), sv.FileError, OSError, "E_PATH"),
        (lambda: sv.load(tiny.file, device="cuda:7").scales, sv.DeviceError, RuntimeError, "E_DEVICE"),
        (lambda: sv.load(tiny.file, device="abacus"), sv.DeviceError, RuntimeError, "E_DEVICE"),
        (lambda: sv.load(tiny.file, dtype="int3"), sv.InvalidError, ValueError, "E_DTYPE"),
        (lambda: model.logits([10**9]), sv.InvalidError, ValueError, "E_VALUE"),
    ]
    for call, own, standard, code in cases:
        with pytest.raises(standard) as caught:
            call()
        error = caught.value
        assert type(error) is own and isinstance(error, sv.Error)
        assert error.code == code and str(error).startswith(code + ": ")
        assert error.__cause__ is None
    with pytest.raises(sv.Error) as caught:
        model.logits([10**9])
    assert (caught.value.index, caught.value.found) == (0, str(10**9))
    assert caught.value.fields == {"index": 0, "expected": "[0, 160)", "found": str(10**9)}
    assert caught.value.tensor is None
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.code, again.fields) == (
        type(caught.value), str(caught.value), caught.value.code, caught.value.fields,
    )  # fmt: skip
    with pytest.raises(sv.AddressError, match=r"layers\.0\.attn\.input_norm"):
        model.scales["layers.0.attn.imput_norm"]


def test_hub_name_gets_one_clear_line():
    with pytest.raises(sv.FileError, match="never downloaded") as caught:
        sv.load("HuggingFaceTB/SmolLM2-135M")
    assert "\n" not in str(caught.value)


def test_the_lock_is_released_and_progress_takes_it(tiny):
    """Another thread runs Python while a forward runs, and a callback is called from inside."""
    model = sv.load(tiny.file)
    model.logits([1])
    turns, stop = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e3)  # nobody is made to give the lock up: it must be given
        before = turns
        model.logits(torch.randint(0, 160, (8, 256)))
        during = turns - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert during > 0


def test_an_exception_in_a_callback_arrives(tiny):
    model = sv.load(tiny.file, progress=lambda what, done, total: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.transformer  # noqa: B018
    model._progress = None
    assert len(model.transformer.sites) == 7  # and the model can be loaded afterwards

    def stop(what: str, done: int, total: int) -> None:
        raise StopIteration(what)

    with pytest.raises(StopIteration):
        model.saliency([1, 2, 3], progress=stop)
    assert model.saliency([1, 2, 3]).predictions == 2


def test_callbacks_are_let_go(tiny):
    class Callback:
        def __call__(self, what: str, done: int, total: int) -> None:
            pass

    callback = Callback()
    gone = weakref.ref(callback)
    model = sv.load(tiny.file)
    model.saliency([[1, 2, 3, 4]], context=4, progress=callback)
    del callback
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("what", ["measure", "generate", "saliency"])
def test_ctrl_c_stops_long_calls(tiny, what, tmp_path):
    """SIGINT arrives in the middle of C++ work that would take minutes; the model is usable afterwards."""
    folder = shutil.copytree(tiny.file, tmp_path / "long")
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 10_000_000  # a full context would end the text at once
    (folder / "config.json").write_text(json.dumps(config))
    program = textwrap.dedent(f"""
        import signal, sys, threading, time, os
        import torch, scalevec as sv
        torch.manual_seed(0)
        model = sv.load({str(folder)!r})
        before = model.logits([1, 2, 3])
        ids = torch.randint(0, 160, (2_000_000,))
        calls = {{
            "measure": lambda: sv.measure(model, ids, allow_unedited=True, context=128),
            "generate": lambda: model.generate([1], max_tokens=10_000_000, temperature=1.0, stop=[]),
            "saliency": lambda: model.saliency(ids, context=128),
        }}
        threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        start = time.monotonic()
        try:
            calls[{what!r}]()
        except KeyboardInterrupt:
            took = time.monotonic() - start
            assert torch.equal(before, model.logits([1, 2, 3]))
            print("stopped", took)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("stopped"), done.stdout + done.stderr
    assert float(done.stdout.split()[1]) < 5
    assert signal.Signals.SIGINT.name not in done.stderr


def test_stubs_say_what_the_module_has():
    """Names of the stub file are those of the module, class by class; so are the parameters' names."""
    tree = ast.parse(pathlib.Path(sv.__file__).with_name("_scalevec.pyi").read_text(encoding="utf-8"))
    stub = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            members = [m for m in node.body if isinstance(m, (ast.FunctionDef, ast.AnnAssign))]
            stub[node.name] = {m.name if isinstance(m, ast.FunctionDef) else m.target.id for m in members}
        elif isinstance(node, ast.FunctionDef):
            stub[node.name] = [a.arg for a in node.args.args + node.args.kwonlyargs]
        elif isinstance(node, ast.AnnAssign):
            stub[node.target.id] = None
    real = {name: value for name, value in vars(_scalevec).items() if not name.startswith("__")}
    assert set(real) == {name for name in stub if not name.startswith("_")}
    compared = {"__eq__", "__lt__", "__le__", "__gt__", "__ge__"}
    plain = {"__init__", "__len__", "__getitem__", "__float__", "__format__", "__enter__", "__exit__"} | compared
    for name, value in real.items():
        if inspect.isclass(value):
            own = {n for n in vars(value) if not n.startswith("_") or n in plain}
            if "__init__" not in stub[name]:  # made by C++ only
                own.discard("__init__")
            assert own == stub[name], name
        elif callable(value):
            for parameter in stub[name]:
                assert f"{parameter}:" in value.__doc__, (name, parameter)


def test_the_package_is_typed_and_needs_nothing_but_what_it_declares():
    assert pathlib.Path(sv.__file__).with_name("py.typed").exists()
    program = (
        "import sys; import scalevec; "
        "bad = {'transformers', 'gguf', 'pandas', 'h5py', 'matplotlib', 'typer', 'rich', 'scipy'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
