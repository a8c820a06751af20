"""What the library promises about files that nobody vouches for, and about what fails half-way.

No input opens a file outside the model's folder, and listing a model reads its headers and vectors alone, as the kernel
sees it; an exception in a backward pass changes nothing. That no input runs code: test_no_code_runs.py.
"""

import ctypes
import gc
import json
import math
import os
import pathlib
import shutil
import weakref
from typing import Any

import pytest
import scalevec as sv
import torch
from conftest import needs_seccomp, run, safetensors_of, write_tokenizer
from scalevec.tokenizer import Tokenizer

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
