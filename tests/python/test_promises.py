"""What the library promises about files that nobody vouches for, and about what fails half-way.

No input runs code or opens a file outside the model's folder, and listing a model reads its headers and vectors alone,
as the kernel sees it; an exception in a backward pass changes nothing.
"""

import ast
import ctypes
import gc
import gzip
import io
import json
import math
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
import textwrap
import weakref
import zipfile
from typing import Any

import no_way_out
import numpy as np
import pytest
import scalevec as sv
import tokenizers
import torch
from scalevec import _scalevec, chat
from scalevec.tokenizer import Tokenizer

HERE = pathlib.Path(__file__).parent


def run(code: str, *arguments: object) -> Any:
    """Python code in a process of its own, which finds no_way_out: the JSON that it prints."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r})\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


needs_seccomp = pytest.mark.skipif(not no_way_out.available(), reason="seccomp filters are of Linux on x86_64 and ARM")


# No input runs code.

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
    # One program is started, one of our own: chat_process.py, in which a template has its limits.
    assert found == {"chat.py": ["subprocess"]}


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, canary: pathlib.Path) -> None:
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def test_a_payload_works_where_it_is_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()


def safetensors_of(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


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


def write_tokenizer(folder: pathlib.Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    made.save(str(folder / "tokenizer.json"))


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


# Paths stay inside the model's folder.


class OpenWatch:
    """Whether anybody has opened a file since this was made, as the kernel tells it."""

    def __init__(self, path: pathlib.Path) -> None:
        libc = ctypes.CDLL(None)
        self.events = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self.events, os.fsencode(path), 0x20) >= 0

    def opened(self) -> bool:
        try:
            return bool(os.read(self.events, 4096))
        except BlockingIOError:
            return False


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_tokenizer_opens_nothing_outside_its_folder(tmp_path, name):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [0]}')
    (folder / "chat_template.jinja").write_text("a template")

    def what_is_read(**options: bool) -> tuple[Any, ...]:
        read = Tokenizer.from_folder(folder, **options)
        return read.encode("b"), read.eos_id, read.stop_ids, read.chat_template

    plain = what_is_read()
    shutil.move(folder / name, outside / name)
    for target in (pathlib.Path("..") / "outside" / name, outside / name):
        (folder / name).symlink_to(target)
        watch = OpenWatch(outside / name)
        with pytest.raises(sv.FileError) as caught:
            what_is_read()
        assert caught.value.code == "E_PATH" and not watch.opened()
        assert what_is_read(allow_links=True) == plain and watch.opened()
        (folder / name).unlink()
    os.mkfifo(folder / name)  # which would block whoever opens it
    with pytest.raises(sv.FileError):
        what_is_read()


# Listing reads headers and vectors.

LAYERS, WIDTH, INNER, KEYS, VOCABULARY, SHARDS = 80, 8192, 28672, 1024, 32000, 30


def write_large_model(folder: pathlib.Path) -> int:
    """Llama 2 70B in bfloat16, 138 GB in 30 shards: holes but for the headers. Bytes of everything but the data."""
    config = {
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "input_layernorm": [WIDTH], "post_attention_layernorm": [WIDTH], "self_attn.q_proj": [WIDTH, WIDTH],
        "self_attn.k_proj": [KEYS, WIDTH], "self_attn.v_proj": [KEYS, WIDTH], "self_attn.o_proj": [WIDTH, WIDTH],
        "mlp.gate_proj": [INNER, WIDTH], "mlp.up_proj": [INNER, WIDTH], "mlp.down_proj": [WIDTH, INNER],
    }  # fmt: skip
    shards: list[dict[str, list[int]]] = [{} for _ in range(SHARDS)]
    for layer in range(LAYERS):
        shard = shards[layer * SHARDS // LAYERS]
        shard.update({f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()})
    shards[0]["model.embed_tokens.weight"] = shards[-1]["lm_head.weight"] = [VOCABULARY, WIDTH]
    shards[-1]["model.norm.weight"] = [WIDTH]
    places, total = {}, 0
    for number, shard in enumerate(shards):
        name, header, end = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors", {}, 0
        for tensor, shape in shard.items():
            begin, end = end, end + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
            places[tensor] = name
        start = safetensors_of(header)
        (folder / name).write_bytes(start)
        os.truncate(folder / name, len(start) + end)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert total > 137e9
    return sum(f.stat().st_size for f in folder.iterdir()) - total


@needs_seccomp
def test_the_shell_lists_140_gigabytes_within_a_second_and_100_megabytes(tmp_path):
    try:
        described = write_large_model(tmp_path)
    except OSError as error:
        pytest.skip(f"no sparse files of 5 GB here: {error}")
    came = run(
        """
        import contextlib, io, json, pathlib, sys, time, torch
        import no_way_out

        def numbers(file):
            lines = (line.split() for line in pathlib.Path("/proc/self", file).read_text().splitlines())
            return {words[0].strip(":"): int(words[1]) for words in lines if words[1:2] and words[1].isdigit()}

        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here
        before, start = numbers("status"), time.process_time()
        from scalevec import cli
        no_way_out.close()
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            status = cli.main(["inspect", sys.argv[1], "--json"])
        figures = {"status": status, "seconds": time.process_time() - start}
        figures["kilobytes"] = numbers("status")["VmHWM"] - before["VmRSS"]
        rows = json.loads(shown.getvalue())
        figures["rows"] = [len(rows), sum(row["width"] for row in rows), rows[-1]["address"], rows[-1]["max"]]

        import scalevec as sv
        before = numbers("io")
        rows = [g.to_dict() for g in sv.load(sys.argv[1]).scales]
        after = numbers("io")
        figures["read"], figures["reads"] = after["rchar"] - before["rchar"], after["syscr"] - before["syscr"]
        print(json.dumps(figures))
        """,
        tmp_path,
    )
    vectors = 2 * LAYERS + 1
    assert came["status"] == 0 and came["rows"] == [vectors, vectors * WIDTH, "final_norm", 0.0]
    assert came["seconds"] < 1.0 and came["kilobytes"] < 100e3
    # Headers, index and configuration, and the vectors: each once; 16 KiB for the start of each file and for /proc.
    assert came["read"] <= described + vectors * 2 * WIDTH + SHARDS * 512 + 16384
    assert came["reads"] <= 2 * SHARDS + vectors + 16


# What fails or ends in a backward pass changes nothing.


class Stop(Exception):
    pass


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_hundred_exceptions_during_backward_change_nothing(tiny_models, one_thread):
    model = sv.load(tiny_models["llama"].file)
    ids = torch.arange(1, 13)
    plain, digests = model.logits(ids), [g.digest for g in model.scales]
    kinds = (Stop, KeyboardInterrupt, SystemExit, MemoryError)
    left = []
    for i in range(100):
        g, kind = model.scales[i % len(model.scales)], kinds[i % len(kinds)]
        vector = torch.tensor(g.effective, dtype=torch.float32, requires_grad=True)

        def stop(gradient: torch.Tensor, kind: type[BaseException] = kind) -> None:
            raise kind("in the middle")

        vector.register_hook(stop)
        left.append(weakref.ref(vector))
        with (
            pytest.raises(kind, match="in the middle"),
            model.edit() as block,
            model.reductions("**", "scaled", products=True),
            model.taps("**", "input", "input_gradient", "vector_gradient") as seen,
            model.override(g, vector),
        ):
            block.rescale("final_norm", 0.5)
            model.logits(ids).sum().backward()
        assert not seen.watching and not model.edited
        assert torch.equal(model.logits(ids), plain)
        del vector, seen, block, stop
    assert [g.digest for g in model.scales] == digests
    assert all(g.stored.grad is None and not g.stored.requires_grad for g in model.scales)
    gc.collect()
    assert not any(ref() is not None for ref in left)


def test_the_interpreter_may_end_during_backward(tiny_models):
    """A dozen times, at different depths, with everything alive: status as asked, within 30 seconds, without a word."""
    statuses = run(
        """
        import gc, json, os, signal, sys
        import scalevec as sv, torch
        torch.set_num_threads(1)  # no threads of its own before the forks
        model = sv.load(sys.argv[1])
        gc.collect()
        gc.freeze()
        statuses = []
        for i in range(12):
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                g = model.scales[i % len(model.scales)]
                vector = torch.tensor(g.effective, dtype=torch.float32, requires_grad=True)
                vector.register_hook(lambda gradient: sys.exit(7))
                block = model.edit()
                block.__enter__().rescale("final_norm", 0.5)
                core = model.transformer
                capture = sv._scalevec.Capture(core, "**", ["input", "vector_gradient"])
                override = sv._scalevec.Override(core, {g.address: vector})
                loss = model.logits([1, 2, 3]).sum()
                loss.backward()
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(json.dumps(statuses))
        """,
        tiny_models["llama"].file,
    )
    assert statuses == [7] * 12
