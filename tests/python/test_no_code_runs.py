"""No input runs code, whatever a model, its tokenizer or an edit holds."""

import ast
import gzip
import io
import json
import os
import pathlib
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import scalevec as sv
import torch
from conftest import HERE, needs_seccomp, run, safetensors_of, write_tokenizer
from scalevec import _scalevec, chat

RUNS_CODE = re.compile(
    r"torch::(load|jit|serialize|pickle)|[Pp]ickle|dlm?open|dlsym|\b(system|popen|v?fork|fexecve|exec[lv][a-z]*)\b"
    r"|posix_spawn|\b(socket|connect|getaddrinfo|curl_\w+)\b|PyRun_|Py_Compile|PyEval_EvalCode|PyMarshal|PyImport_Exec"
)


def names_called(binary: pathlib.Path) -> set[str]:
    """Names that a library leaves to others: what it can call beyond its own code."""
    dynamic = [] if binary.suffix == ".a" else ["-D"]
    found = subprocess.run(["nm", "-C", "--undefined-only", *dynamic, binary], capture_output=True, text=True)
    return {line.split(maxsplit=1)[1] for line in found.stdout.splitlines() if line[:1] == " "}


def test_no_library_calls_what_runs_code(program):
    extension = pathlib.Path(_scalevec.__file__)
    readers = program("readers_test").parents[1] / "core" / "libscalevec_readers.a"
    for library in (extension, readers):
        names = names_called(library)
        assert any("openat" in name or "pread" in name for name in names), library
        assert not [name for name in names if RUNS_CODE.search(name)], library
    # The readers neither map files nor know LibTorch.
    assert not [name for name in names_called(readers) if re.search(r"\bmmap|\b(at|c10|torch)::", name)]
    # Whoever does call such things is seen, as torch's own extension.
    theirs = names_called(pathlib.Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    seen = {match.group() for name in theirs if (match := RUNS_CODE.search(name))}
    assert {"torch::jit", "dlopen", "socket", "connect"} <= seen


FORBIDDEN_MODULES = {
    "pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess", "multiprocessing", "ctypes",
    "cffi", "socket", "ssl", "http", "urllib", "requests", "httpx", "huggingface_hub", "transformers", "runpy", "code",
    "codeop", "imp", "pty", "yaml",
}  # fmt: skip
FORBIDDEN_CALLS = re.compile(
    r"(eval|exec|compile|__import__|breakpoint)|importlib\.import_module|os\.(system|popen|fork\w*|exec\w+|spawn\w+|posix_spawn\w*)"
    r"|torch\.(load|jit|hub|package|serialization|compile|classes|ops\.load\w*)(\..*)?|(np|numpy)\.(fromregex|f2py.*)"
    r"|jinja2\.(Environment|Template)|.*\.(read_pickle|load_module|exec_module)"
)


def ways_to_run_code(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{a.name}" for a in node.names]
        found += [m for m in modules if m.split(".")[0] in FORBIDDEN_MODULES or FORBIDDEN_CALLS.fullmatch(m)]
        if isinstance(node, (ast.Name, ast.Attribute)) and FORBIDDEN_CALLS.fullmatch(ast.unparse(node)):
            found.append(ast.unparse(node))
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            found += [] if ast.unparse(node.value) == "False" else [ast.unparse(node)]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
            found += [] if any(k.arg == "allow_pickle" for k in node.keywords) else [ast.unparse(node)]
    return found


def test_no_source_of_the_package_runs_what_it_reads():
    for source in (
        "import pickle", "from pickle import loads", "import os, subprocess as s", "import urllib.request", "eval('1')",
        "__import__('os')", "from torch import load", "torch.load(path)", "torch.jit.load(path)", "os.system('x')",
        "os.execv(a, b)", "f = exec", "np.load(path)", "np.load(path, allow_pickle=flag)", "importlib.import_module(n)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)", "from jinja2 import Template", "pandas.read_pickle(p)",
    ):  # fmt: skip
        assert ways_to_run_code(source), source
    sources = sorted(pathlib.Path(sv.__file__).parent.glob("*.py"))
    found = {f.name: ways for f in sources if (ways := ways_to_run_code(f.read_text(encoding="utf-8")))}
    assert len(sources) > 10
    # Programs of our own are started: chat_process.py, in which a template has its limits, and `scalevec train` for each
    # run of an experiment. transformers' base class of callbacks reads nothing.
    assert found == {
        "chat.py": ["subprocess"], "experiments.py": ["subprocess"], "trainer_callback.py": ["transformers.TrainerCallback"],
    }  # fmt: skip


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, canary: pathlib.Path) -> None:
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def test_a_payload_works_where_it_is_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()


SAFETENSORS = safetensors_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))
GGUF = b"GGUF" + (3).to_bytes(4, "little") + bytes(16) + bytes(8)


def hostile_files(folder: pathlib.Path, canary: pathlib.Path) -> dict[str, str]:
    """What lies in `folder` by name, with the code of its refusal: pickles in every dress, and what is no model."""
    expected = {}

    def put(name: str, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        expected[name.split("/")[0]] = "E_FORMAT"

    bomb = pickle.dumps(Payload(canary), protocol=2)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        put(f"protocol{protocol}.pt", pickle.dumps([Payload(canary)], protocol=protocol))
    legacy = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, Payload(canary)))
    for name in ("legacy.bin", "legacy.safetensors", "legacy.gguf"):
        put(name, legacy)
    put("tail.safetensors", bomb + SAFETENSORS)
    put("tail.gguf", bomb + GGUF)

    def archive(*members: str) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as made:
            for member in members:
                made.writestr(member, bomb)
        return out.getvalue()

    put("zip.pt", archive("archive/data.pkl", "archive/version"))
    put("zip.safetensors", archive("archive/data.pkl"))
    put("script.pt", archive("model/code/__torch__.py", "model/data.pkl", "model/constants.pkl"))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as made:
        made.addfile(tarfile.TarInfo("pickle"), io.BytesIO(bomb))
    put("tar.pt", tar.getvalue())
    put("gzip.safetensors", gzip.compress(bomb))
    put("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    put("page.gguf", b"<!DOCTYPE html><html><script>alert(1)</script></html>")
    put("gguf.safetensors", GGUF)
    put("safetensors.gguf", SAFETENSORS)
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", ".metadata", "consolidated.00.pth"):
        put(f"folder with {name}/{name}", bomb)
        put(f"folder with {name}/config.json", b'{"model_type": "llama"}')
    (folder / "empty").mkdir()
    os.mkfifo(folder / "fifo.safetensors")
    return {**expected, "empty": "E_FORMAT", "fifo.safetensors": "E_PATH", "absent.safetensors": "E_PATH"}


def write_own_code(folder: pathlib.Path, model: pathlib.Path, canary: pathlib.Path) -> None:
    """A good model that asks for its own code to be run, and brings it."""
    shutil.copytree(model, folder)
    write_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    asks = {
        "auto_map": {"AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Model", None]},
        "custom_pipelines": {"text-generation": {"impl": "own.Model"}},
        "tokenizer_class": "Own",
    }
    (folder / "config.json").write_text(json.dumps({**config, **asks}))
    (folder / "tokenizer_config.json").write_text(json.dumps(asks))
    for name in ("own.py", "__init__.py", "conftest.py", "sitecustomize.py", "jinja2.py", "h5py.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(canary)!r})\n")


def write_gguf(path: pathlib.Path, texts: dict[str, str]) -> None:
    """A Llama of one layer and width 8, by the gguf package, with other texts in its metadata."""
    writer = pytest.importorskip("gguf").GGUFWriter(path, "llama")
    for name, value in {"context_length": 64, "embedding_length": 8, "feed_forward_length": 12, "block_count": 1,
                        "head_count": 2, "head_count_kv": 1}.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    for key, value in texts.items():
        writer.add_string(key, value)
    writer.add_token_list(["a", "b"])
    shapes = {"attn_norm": (8,), "ffn_norm": (8,), "attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8),
              "attn_output": (8, 8), "ffn_gate": (12, 8), "ffn_up": (12, 8), "ffn_down": (8, 12)}  # fmt: skip
    tensors = {f"blk.0.{name}": shape for name, shape in shapes.items()}
    for name, shape in {"token_embd": (2, 8), "output_norm": (8,), **tensors}.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tree(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


@needs_seccomp
def test_hostile_files_start_nothing_and_write_nothing(tiny_models, tmp_path):
    canary, folder = tmp_path / "canary", tmp_path / "files"
    folder.mkdir()
    expected = hostile_files(folder, canary)
    assert len(expected) >= 14
    own = folder / "own code"
    write_own_code(own, tiny_models["llama"].file, canary)
    words = f"{{{{ cycler.__init__.__globals__.os.mkdir('{canary}') }}}} $(mkdir {canary}); __import__('os').mkdir('{canary}')"
    write_gguf(folder / "words.gguf", {"general.name": words, "tokenizer.chat_template": words})
    (folder / "words.sv.json").write_text(json.dumps({"note": words, "operations": [{"selector": words}]}))
    np.save(folder / "ids.npy", np.array([Payload(canary)], dtype=object))
    with sv.load(own).edit() as block:
        block.rescale("final_norm", 2.0)
    block.save(folder / "good.sv.json")
    before = tree(tmp_path)
    came = run(
        """
        import json, os, sys
        import no_way_out, scalevec as sv
        from scalevec import cli
        folder, names, words = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
        os.chdir(folder + "/own code")  # where an import from the current folder would find a module
        model = sv.load(".")
        came = {"events": []}
        sys.addaudithook(lambda event, _: came["events"].append(event) if event.startswith("pickle.") else None)
        no_way_out.close()

        def code_of(call):
            try:
                call()
            except sv.Error as error:
                return error.code

        for name in names:
            came[name] = code_of(lambda: sv.load(os.path.join(folder, name)).scales)
        came["warnings"] = model.warnings
        came["vectors"] = [g.to_dict()["address"] for g in model.scales]
        came["finite"] = bool(model.logits(model.tokenizer.encode("b")).isfinite().all())
        gguf = sv.load(folder + "/words.gguf")
        came["words"] = [gguf.config["general.name"], json.loads(gguf.checkpoint.tokenizer_json())["tokenizer.chat_template"]]
        came["edit"] = code_of(lambda: sv.read_edit(folder + "/words.sv.json"))
        came["selector"] = code_of(lambda: model.scales.select(words))
        came["ids"] = cli.main(["measure", ".", "--edit", folder + "/good.sv.json", "--ids", folder + "/ids.npy"])
        print(json.dumps(came))
        """,
        folder,
        json.dumps(list(expected)),
        words,
    )
    assert {name: came[name] for name in expected} == expected
    assert came["events"] == [] and came["finite"]
    assert len(came["vectors"]) == 7 and "auto_map" in str(came["warnings"])
    assert came["words"] == [words, words]
    assert came["edit"] in ("E_SCHEMA", "E_BUNDLE") and came["selector"] == "E_ADDR" and came["ids"] == 2
    assert tree(tmp_path) == before and not canary.exists()


@needs_seccomp
@pytest.mark.parametrize(
    "way",
    ["os.system('true')", "os.execv('/bin/true', ['true'])", "os.fork()", "subprocess.run(['true'])", "socket.socket()",
     "ctypes.CDLL(None).system(b'true')", "open('canary', 'w')", "os.mkdir('canary')"],
)  # fmt: skip
def test_every_way_out_is_shut(way, tmp_path):
    code = f"import ctypes, os, socket, subprocess, no_way_out; no_way_out.close(); {way}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HERE)})
    assert done.returncode == -signal.SIGSYS and not list(tmp_path.iterdir())


REFUSED = None
TEMPLATES = [
    # What is no text for the template stays out of its reach.
    ("{{ cycler.__init__.__globals__.os.mkdir(canary) }}", REFUSED),
    ("{{ raise_exception.__globals__['sys'].modules['os'].mkdir(canary) }}", REFUSED),
    ("{{ messages.__class__.__mro__[1].__subclasses__() }}", REFUSED),
    ("{{ self.__init__.__globals__.__builtins__.open(canary, 'w') }}", REFUSED),
    ("{% import 'os' as os %}{{ os.mkdir(canary) }}", REFUSED),
    ("{% include '/etc/passwd' %}", REFUSED),
    ("{{ messages.append(1) }}", REFUSED),
    ("{{ lipsum.__globals__ }}{{ (''|attr('__class__')) }}{{ '{0.__class__}'.format('') }}", ""),
    ("{{ strftime_now.__globals__ }}{{ strftime_now('%%') }}", "%"),
    # What has no end is ended.
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", REFUSED),
    ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}", REFUSED),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", REFUSED),
    ("{{ 9 ** 9 ** 99999999 }}", REFUSED),
    ("{{ 'a' * 10 ** 12 }}", REFUSED),
    ("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", REFUSED),
    ("{% for i in range(10 ** 9) %}{% endfor %}", REFUSED),
    ("{{ 1 / 0 }}", REFUSED),
    ("{{ raise_exception('\x1b[31m' ~ canary) }}", REFUSED),
]


@pytest.mark.parametrize(("template", "text"), TEMPLATES, ids=range(len(TEMPLATES)))
def test_a_chat_template_reaches_nothing_and_ends(template, text, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 1)
    monkeypatch.setattr(chat, "BYTES", 256 << 20)
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def render() -> str:
        return chat.render(template, [{"role": "user", "content": "hi"}], {"canary": str(tmp_path / "canary")}, True)

    if text is REFUSED:
        with pytest.raises(sv.InvalidError) as caught:
            render()
        assert caught.value.code == "E_FORMAT" and str(caught.value).isprintable()
    else:
        assert render() == text
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert not list(tmp_path.iterdir())
