"""What a limit leaves unread: ids as of the whole text, and memory that grows with neither text nor windows."""

import importlib.resources
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scalevec as sv
from scalevec import text
from scalevec.text import documents_of, ids_of

# Paragraphs, code, blank lines, runs of all kinds, other scripts, special tokens written out.
PIECES = [
    (importlib.resources.files("scalevec") / "guide.md").read_text()[:6000],
    "def f(x):\n    if x:\n\n\n        return '''\n\t\t'''\n" * 12,
    "\n\n\n\n\n   \n\t\nIl était une fois; 東京は日本の首都です。\nПривет, мир! 🦜🦜👩‍👩‍👧\n1234567890 3.14159\r\nüb\n"
    * 12,
    "=" * 300
    + "\n"
    + "-" * 299
    + "\n\nA line.\n<|im_start|>user\n<bos>Hello<eos>\n" * 8
    + "\n" * 400
    + " " * 500
    + "z\n",
]
LONG = "".join(PIECES[(3 * i + i // 4) % 4] for i in range(24))
WORDY = "\n".join(" ".join(["international government development information"] * (1 + i % 3)) for i in range(500))


@pytest.mark.parametrize("fixture", ["smollm2_gguf", "gemma3_gguf"])
def test_the_beginning_of_a_text_has_the_ids_that_it_has_in_the_whole(fixture, request, monkeypatch):
    model = sv.load(request.getfixturevalue(fixture))
    tokenizer = model.tokenizer
    whole = tokenizer.encode(LONG)
    encode, seen = tokenizer.encode, []
    monkeypatch.setattr(tokenizer, "encode", lambda text: seen.append(len(text)) or encode(text))
    for tokens in [1, 2, *range(97, len(whole), len(whole) // 60), len(whole) - 1, len(whole), len(whole) + 9]:
        ((ids,), _) = documents_of(model, LONG, tokens)
        assert ids.tolist() == whole[:tokens], tokens
    whole = encode(WORDY)
    for tokens in range(1300, 1500):  # at about 11 characters each, the last of some stand right before the cut
        ((ids,), _) = documents_of(model, WORDY, tokens)
        assert ids.tolist() == whole[:tokens], tokens
    seen.clear()
    documents_of(model, LONG, 100)
    assert sum(seen) < len(LONG) / 10


@pytest.mark.parametrize("fixture", ["smollm2_gguf", "gemma3_gguf"])
def test_a_text_in_pieces_has_the_ids_of_the_whole(fixture, request, monkeypatch):
    """Wherever the pieces end; what cannot be joined is taken of the whole."""
    tokenizer = sv.load(request.getfixturevalue(fixture)).tokenizer
    encode, wholes = tokenizer.encode, []
    monkeypatch.setattr(tokenizer, "encode", lambda text: wholes.append(len(text)) or encode(text))
    whole = {name: encode(value) for name, value in (("LONG", LONG), ("WORDY", WORDY))}
    monkeypatch.setattr(text, "_LEAD", 1024)
    joined = 0
    for piece in range(9001, 9001 + 37 * 60, 37):
        monkeypatch.setattr(text, "_PIECE", piece)
        for name, value in (("LONG", LONG), ("WORDY", WORDY)):
            wholes.clear()
            assert np.concatenate(list(text._in_pieces(tokenizer, value))).tolist() == whole[name], (name, piece)
            joined += not wholes
    assert joined > 60, joined
    # Nothing to join by: one word without an end.
    endless = "".join(np.random.default_rng(0).choice(list("aeimnort"), 30_000))
    assert np.concatenate(list(text._in_pieces(tokenizer, endless))).tolist() == encode(endless)
    # A limit beyond the first piece.
    ids = text._text_ids(tokenizer, WORDY, 3000)
    assert ids.tolist() == whole["WORDY"][:3000]


def test_pieces_that_disagree_are_not_joined():
    class Shifty:
        """Ids that depend on where the text begins."""

        def encode_places(self, text):
            return np.arange(len(text)) + len(text) % 7, np.arange(len(text))

        def encode(self, text):
            return list(range(len(text)))

    value = "x" * (3 * text._PIECE + 5)
    assert np.array_equal(np.concatenate(list(text._in_pieces(Shifty(), value))), np.arange(len(value)))


def test_memory_does_not_grow_with_a_text_but_for_its_ids(smollm2_gguf, tmp_path):
    program = r"""
        import re, sys
        import scalevec as sv
        from scalevec.text import documents_of
        model = sv.load(sys.argv[1])
        whole = open(sys.argv[2]).read()
        def peak():
            return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
        short = documents_of(model, whole[: 3 << 20])[0][0]
        before = peak()
        long = documents_of(model, whole)[0][0]
        print(peak() - before, len(long) - len(short))
    """
    (tmp_path / "long.txt").write_text(LONG * (12 * 2**20 // len(LONG)))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), smollm2_gguf, tmp_path / "long.txt"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    more, ids = map(int, done.stdout.split())
    assert ids > 1_000_000
    # Two arrays of them while they are joined; whole, they took some 500 bytes each.
    assert more < 24 * ids + 8e6


def test_documents_beyond_the_limit_are_not_asked_for(smollm2_gguf):
    model = sv.load(smollm2_gguf)
    first, second = (len(model.tokenizer.encode(text)) for text in PIECES[:2])

    def texts():
        yield from PIECES[:2]
        raise AssertionError("one document too many")

    for tokens, sizes in [(5, [5]), (first, [first]), (first + 3, [first, 3]), (first + second, [first, second])]:
        documents, _ = documents_of(model, texts(), tokens)
        assert [len(ids) for ids in documents] == sizes


def test_arrays_of_ids_are_views_of_what_is_read(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(1000))
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    ids = ids_of(mapped, most=7)
    assert ids.tolist() == list(range(7)) and np.shares_memory(ids, mapped)
    rows, _ = documents_of(None, mapped.reshape(10, 100), 130)
    assert [row.tolist() for row in rows] == [list(range(100)), list(range(100, 130))]


@pytest.fixture(scope="module")
def peaks(tiny_models, tmp_path_factory):
    """Peaks of resident memory, in bytes, of one process that measures ever more; and what it printed."""
    folder = tmp_path_factory.mktemp("peaks")
    ids = np.random.default_rng(0).integers(0, 160, 5_000_000)
    np.save(folder / "long.npy", ids)
    np.save(folder / "short.npy", ids[:2048])
    model = sv.load(tiny_models["llama"].file)
    with model.edit() as block:
        block.rescale("layers.1.*.input_norm", 1.3)
    block.to_edit().save(folder / "e.sv.json")
    code = f"""
        import contextlib, io, json, re
        from scalevec import cli

        def run(file, tokens):
            words = ["measure", {str(tiny_models["llama"].file)!r}, "--edit", "e.sv.json", "--ids", file]
            words += ["--tokens", str(tokens), "--context", "256", "--threads", "1", "--json"]
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert cli.main(words) == 0
            # Not ru_maxrss, which begins with the peak of the process that started this one.
            peak = re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]
            return int(peak) * 1024, json.loads(said.getvalue())

        print(json.dumps([run("short.npy", 4 * 256), run("short.npy", 2048), run("long.npy", 2048), run("long.npy", 400 * 256)]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_limit_leaves_the_rest_of_an_array_on_the_disk(peaks):
    _, (short, of_short), (long, of_long), _ = peaks
    assert of_long["predictions"] == of_short["predictions"] == 2048 - 8
    assert of_long["kl"] == of_short["kl"]
    assert long - short < 10e6  # the file has 40 MB


def test_memory_does_not_grow_with_the_windows(peaks):
    (four, _), _, _, (many, figures) = peaks
    assert figures["windows"] == 400
    # The ids are 2 x 0.8 MB. Float32 logits of all windows would be 65 MB, for one of the two streams.
    assert many - four < 16e6
